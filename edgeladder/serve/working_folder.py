"""A folder for a service's own files in passing: private, on a disk, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from edgeladder.core.passing_folder import PassingFolder


@contextlib.contextmanager
def working_folder(name: str) -> Iterator[Path]:
    """A new folder of mode 0700; what workers keep in passing goes there too.

    A worker that is killed leaves its own folder behind: all of them go with this one, and this
    one, where the service itself is killed, with the next that is made.
    """
    before = os.environ.get("TMPDIR")
    folder = PassingFolder(name)
    os.environ["TMPDIR"] = str(folder.path)
    try:
        yield folder.path
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        folder.close()
