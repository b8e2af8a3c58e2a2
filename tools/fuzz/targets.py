"""What is fuzzed: every parser of bytes that may be damaged or crafted, each behind one function.

A target writes the bytes where the program would find them, reads them as the program does, and
returns what was understood, as something that can be compared. Where a checksum or a hash guards
the bytes (`sealed`), a changed input may be refused or give the identical result; nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.errors import EdgeLadderError

REFUSALS = (2, 3, 4, 5, 7)  # the exit codes that a bad input may end with


@dataclass(frozen=True)
class Target:
    """One parser.

    Attributes:
        name: of the target, for the command line and the corpus.
        form: what its bytes are made of (`mutate`).
        seeds: good inputs, from the tiny bundle's folder.
        parse: reads an input below an empty folder; what it returns is compared by `==`.
        sealed: a checksum guards the bytes.
    """

    name: str
    form: str
    seeds: Callable[[Path], list[bytes]]
    parse: Callable[[bytes, Path], Any]
    sealed: bool = False


class Refused(Exception):  # noqa: N818 - an outcome
    """A target's own word for a refusal that is not an exit code, such as an answer over HTTP."""


def accepted(error: BaseException) -> bool:
    """Whether an error is one that a bad input may end with."""
    from edgeladder.fleet.outcomes import HostError

    if isinstance(error, (HostError, Refused)):
        return True  # that host's line in the outcome; the others' work stands
    return isinstance(error, EdgeLadderError) and error.exit_code in REFUSALS


def digest(arrays: dict[str, np.ndarray]) -> str:
    """One text that differs where any name, shape, type or bit does."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"{name!r}{array.dtype}{array.shape}".encode("utf-8", "surrogatepass"))
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
