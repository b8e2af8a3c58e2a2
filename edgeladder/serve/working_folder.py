"""A folder for a service's own files in passing: private, on a disk, and gone afterwards."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def working_folder(name: str) -> Iterator[Path]:
    """A new folder of mode 0700; what workers keep in passing goes there too.

    `/tmp` is memory on many small boxes, so that `/var/tmp` is taken unless TMPDIR says otherwise.
    A worker that is killed leaves its own folder behind: all of them go with this one.
    """
    before = os.environ.get("TMPDIR")
    on_disk = "/var/tmp"  # noqa: S108 - a folder of our own is made in it
    parent = before or (on_disk if os.access(on_disk, os.W_OK) else None)
    folder = Path(tempfile.mkdtemp(prefix=f"edgeladder-{name}-", dir=parent))
    os.environ["TMPDIR"] = str(folder)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)
