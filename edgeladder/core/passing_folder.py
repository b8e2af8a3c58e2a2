"""Folders of our own for files in passing; what killed processes left goes with the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

_PREFIX = "edgeladder-"
_LOCK = ".lock"  # held while its process lives, whatever its number is used for afterwards
_YOUNG_SECONDS = 60.0  # in which one that is being made has its lock


class PassingFolder:
    """A new folder of mode 0700, removed by `close` or, after a kill, by the next one made here.

    `/tmp` is memory on many small boxes, so that `/var/tmp` is taken unless TMPDIR says otherwise.
    """

    def __init__(self, name: str = ""):
        """Args: name: a word in the folder's name, for people."""
        parent = _parent()
        _sweep(parent)
        prefix = f"{_PREFIX}{name}-" if name else _PREFIX
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with contextlib.suppress(OSError):  # a file system without locks: nothing is swept there
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Remove it with all that is in it. Safe to call again."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def _parent() -> Path:
    on_disk = "/var/tmp"  # noqa: S108 - a folder of our own is made in it
    if "TMPDIR" not in os.environ and os.access(on_disk, os.W_OK):
        return Path(on_disk)
    return Path(tempfile.gettempdir())


def _sweep(parent: Path) -> None:
    """Remove folders of ours whose processes are gone; what is not plainly that stays."""
    with contextlib.suppress(OSError):
        for folder in parent.glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                _remove_if_left(folder)


def _remove_if_left(folder: Path) -> None:
    about = folder.lstat()
    ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
    if not ours or time.time() - about.st_mtime < _YOUNG_SECONDS:
        return
    # a folder without a lock is somebody else's: this raises, and it stays
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held: its process lives
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)
