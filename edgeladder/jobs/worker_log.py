"""worker.log of a run: what each phase began with, what its worker said, and how it ended.

Bounded: what was written before lies in worker.log.1 once the file is large, and no worker fills a
card with what it says. Standard library only: the supervisor counts inside the budget.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from edgeladder.core import disk

LARGEST_BYTES = 512_000  # of worker.log when a phase begins, and of what one worker says


class WorkerLog:
    """The log during one life of a phase's worker."""

    def __init__(self, path: Path):
        self.path = Path(path)
        if self.path.is_file() and self.path.stat().st_size > LARGEST_BYTES:
            disk.replace(self.path, self.path.with_name(self.path.name + ".1"))
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._descriptor: int | None = os.open(self.path, flags, 0o644)
        self._left = LARGEST_BYTES
        self._line_ended = True

    def line(self, text: str) -> None:
        """A line of our own, stamped with the time (UTC)."""
        start = "" if self._line_ended else "\n"
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        self._write(f"{start}{stamp} {' '.join(text.split())}\n".encode("utf-8", "replace"))

    def said(self, data: bytes) -> None:
        """What the worker or a library in it wrote, as it is, up to `LARGEST_BYTES`."""
        if len(data) > self._left >= 0:
            self._write(data[: self._left])
            self._left = -1
            self.line("more was said; it is left out")
        elif self._left >= 0:
            self._left -= len(data)
            self._write(data)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, data: bytes) -> None:
        if self._descriptor is not None and data:
            os.write(self._descriptor, data)
            self._line_ended = data.endswith(b"\n")
