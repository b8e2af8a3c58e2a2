"""Every change of the disk goes through here: writes, fsyncs, renames, removals.

So a test can put another `Disk` in the place of the real one, which fails, stops or forgets at the
n-th operation, as a full disk, a kill or a power cut does (`tools.faults`). What a power cut leaves
is certain only where file and folder were fsynced; everything made here is fsynced before it takes
its name, and the folder after. Standard library only: the waiting supervisor writes too.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # renameat2(2)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


class Disk:
    """The operations, one system call each."""

    def write(self, descriptor: int, data: Any) -> int:
        """Append or write some of the bytes; how many."""
        return os.write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """Return when a file's content, or a folder's names, survive a power cut."""
        os.fsync(descriptor)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, over what is there."""
        os.replace(source, target)

    def exchange(self, one: Path, other: Path) -> bool:
        """Let two paths change places at once; False where the file system cannot."""
        import ctypes  # a megabyte that only who replaces a folder needs

        swap = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if swap is None:
            return False
        if swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
        if code in _NO_EXCHANGE:
            return False
        raise OSError(code, os.strerror(code), str(one))

    def unlink(self, path: Path) -> None:
        """Remove a file's name."""
        os.unlink(path)

    def make_folder(self, path: Path) -> None:
        """Make one folder."""
        os.mkdir(path)

    def remove_folder(self, path: Path) -> None:
        """Remove an empty folder."""
        os.rmdir(path)


_disks: list[Disk] = [Disk()]  # the last one is asked


@contextlib.contextmanager
def using(disk: Disk) -> Iterator[None]:
    """Put another disk in the place of the real one, for a test."""
    _disks.append(disk)
    try:
        yield
    finally:
        _disks.remove(disk)


def write(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of the bytes."""
    left = memoryview(data)
    while left:
        left = left[_disks[-1].write(descriptor, left) :]


class _NewFile(io.FileIO):
    """A file whose writes go through the disk."""

    def write(self, data: Any) -> int:
        return _disks[-1].write(self.fileno(), data)


def create(path: Path) -> io.BufferedWriter:
    """A file open for writing, empty; who made it gives it its name with `replacing`."""
    return io.BufferedWriter(_NewFile(path, "w"), 1 << 17)


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not be there yet, fsynced; for keys and secrets.

    Raises:
        FileExistsError: it is there.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        write(descriptor, content)
        _disks[-1].fsync(descriptor)
    finally:
        os.close(descriptor)
    fsync_directory(path.parent)


def fsync(path: Path) -> None:
    """Make a file's content survive a power cut; its name does so with its folder's fsync."""
    _fsync(path, os.O_RDONLY)


def fsync_directory(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        _disks[-1].fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make all files and folders below `folder` survive a power cut."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(place, name)
            if not path.is_symlink():
                fsync(path)
        fsync_directory(Path(place))


def replace(source: Path, target: Path) -> None:
    """Rename a file or folder over another and make that survive a power cut."""
    _disks[-1].replace(source, target)
    fsync_directory(target.parent)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths of one folder change places at once; False where the file system cannot."""
    if not _disks[-1].exchange(one, other):
        return False
    fsync_directory(one.parent)
    return True


def unlink(path: Path) -> None:
    """Remove a file, where it is there."""
    with contextlib.suppress(FileNotFoundError):
        _disks[-1].unlink(path)


def remove_folder(path: Path) -> None:
    """Remove an empty folder."""
    _disks[-1].remove_folder(path)


def make_folders(path: Path) -> None:
    """Make a folder and those above it that are missing, so that a power cut leaves them.

    Raises:
        FileExistsError: a file has the name of one of them.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_folders(path.parent)
    try:
        _disks[-1].make_folder(path)
    except FileExistsError:
        if not path.is_dir():  # another process may have been first
            raise
    fsync_directory(path.parent)


def remove_tree(folder: Path) -> None:
    """Remove a folder and all in it, where it is there; what cannot be removed stays."""
    for place, folders, names in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            for name in names:
                _disks[-1].unlink(Path(place, name))
            for name in folders:
                if Path(place, name).is_symlink():
                    _disks[-1].unlink(Path(place, name))
            _disks[-1].remove_folder(Path(place))
