"""Progress as the command line shows it: as `-q` and `-v` ask."""

from __future__ import annotations

from edgeladder.cli import verbosity
from edgeladder.core import progress


class Progress(progress.Progress):
    """Progress on stderr, at the command's own level."""

    def __init__(self) -> None:
        super().__init__(verbosity.level())
