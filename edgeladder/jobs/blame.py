"""Whether a picture, and not the sizes of the work, is what ends a phase's workers."""

from __future__ import annotations

import signal
from collections import Counter

from edgeladder.budget.policy import PICTURE_DEATHS

# how a process ends whose decoder a picture has led astray
DECODER_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT)


class Blame:
    """Which pictures were being decoded when workers of a phase ended."""

    def __init__(self) -> None:
        self._ends: Counter[str] = Counter()

    def falls_on(self, picture: str) -> bool:
        """Count an end of a worker, and say whether this picture has now ended enough of them."""
        self._ends[picture] += 1
        return bool(picture) and self._ends[picture] >= PICTURE_DEATHS
