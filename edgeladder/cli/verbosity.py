"""How much a command says on stderr: `-q`, nothing, or `-v`; one value for the whole process."""

from __future__ import annotations

from edgeladder.core.progress import NORMAL

_level = NORMAL


def level() -> int:
    """QUIET, NORMAL or VERBOSE of `core.progress`."""
    return _level


def set_level(value: int) -> None:
    """Say from here on as much as that."""
    global _level
    _level = value
