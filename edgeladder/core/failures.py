"""Exceptions of Python and the system as the errors a user can act on, in one place.

A full disk, a path longer than the system takes or a name that is not UTF-8 can be met at any of a
hundred calls; commands and workers ask here before they call anything unexpected.
"""

from __future__ import annotations

import errno
import os

from edgeladder.core.errors import ConfigError, DataError, EdgeLadderError, StorageError
from edgeladder.core.plain_files import NotPlainError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)
_WRONG_PATH = (
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ELOOP, errno.EEXIST,
    errno.ENOTEMPTY, errno.ENODEV, errno.ENXIO,
)  # fmt: skip


def known_failure(error: BaseException, *, where: str | None = None) -> EdgeLadderError | None:
    """The error that an exception stands for; None: an unexpected one.

    Args:
        where: the path it was about; None: the one that the exception names.
    """
    if isinstance(error, EdgeLadderError):
        return error
    if isinstance(error, OSError):
        return _of_system(error, where or _named(error))
    if isinstance(error, UnicodeEncodeError):
        return ConfigError(
            f"{error.object[:200]!r} is not UTF-8",
            where=where,
            remedy="rename it, or name another path",
        )
    if isinstance(error, RecursionError):
        return DataError(
            "folders or values that are nested too deeply", where=where, remedy="make them flatter"
        )
    if isinstance(error, NotPlainError):
        return ConfigError(str(error), where=where, remedy="name a plain file")
    if isinstance(error, ValueError) and "has an empty name" in str(error):  # `.`, `/`
        return ConfigError(
            "a folder where a file's name is needed", where=where, remedy="name a file"
        )
    if isinstance(error, ValueError) and "null byte" in str(error):
        return ConfigError(
            "a path with a NUL character in it", where=where, remedy="name another path"
        )
    return None


def _named(error: OSError) -> str | None:
    name = error.filename
    return None if name is None else os.fsdecode(name) if isinstance(name, bytes) else str(name)


def _of_system(error: OSError, where: str | None) -> EdgeLadderError | None:
    if error.errno in _FULL:
        return StorageError(
            "no space left on the device",
            where=where,
            remedy="free some space or choose another folder, then run the same command again: "
            "what is already written is kept",
        )
    if error.errno == errno.EIO:
        return StorageError(
            "the disk reports an error",
            where=where,
            remedy="a disk or memory card that fails is best replaced; the same command goes on "
            "from what was written before",
        )
    said = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in _FORBIDDEN:
        return StorageError(
            f"cannot write: {said}" if error.errno in (errno.EROFS, errno.EFBIG) else said,
            where=where,
            remedy="choose a folder you may read and write",
        )
    if error.errno in _WRONG_PATH:
        return ConfigError(
            f"a path that cannot be used: {said}",
            where=where if where is None or len(where) <= 300 else f"{where[:300]}...",
            remedy="name another path",
        )
    return None
