"""Pictures to where their label says: moved or copied, never over another file."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from edgeladder.core import disk
from edgeladder.core.inference import Prediction
from edgeladder.core.printable import one_line

UNKNOWN = "_unknown"  # the folder of what is none of the classes, where nobody is asked
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)
_MOST_CHARACTERS = 100  # of a class folder's name


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where pictures go; None: they stay."""

    sort_into: Path | None = None  # below it, a folder a class
    ask: Path | None = None  # what is none of the classes
    set_aside: Path | None = None  # what cannot be read
    copy: bool = False

    def folders(self) -> tuple[Path, ...]:
        """All of them."""
        return tuple(p for p in (self.sort_into, self.ask, self.set_aside) if p is not None)

    def target(self, name: str, prediction: Prediction) -> Path | None:
        """A path that nothing has yet for a picture; None: it stays."""
        folder = self._folder(prediction)
        return None if folder is None else free(folder, name.rpartition("/")[2])

    def _folder(self, prediction: Prediction) -> Path | None:
        if prediction.error is not None or not prediction.labels:
            return self.set_aside
        if prediction.unknown and self.ask is not None:
            return self.ask
        if self.sort_into is None:
            return None
        if prediction.unknown:
            return self.sort_into / UNKNOWN
        return self.sort_into / folder_name(prediction.labels[0].label)


def folder_name(label: str) -> str:
    """A class's label as the name of one folder, below the one it is made in and seen by all."""
    name = one_line(label).replace("/", "_").replace("\\", "_").strip()[:_MOST_CHARACTERS]
    return f"_{name}" if not name or name.startswith(".") else name


def free(folder: Path, name: str) -> Path:
    """The path of `name` in a folder, with a number where that is taken."""
    stem, suffix = os.path.splitext(name)
    number, path = 1, folder / name
    while path.exists() or path.is_symlink():
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path


def place(source: Path, target: Path, *, copy: bool) -> Path:
    """Move or copy; may be called again after a crash in it.

    Returns:
        Where the picture is: `target`, or a numbered name beside it where another file came first.

    Raises:
        OSError: the disk is full, or the folder cannot be written; the source is still there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and _is_same(source, target):
        pass  # a move that a crash cut in two, or a copy that was finished
    elif copy:
        target = _copied(source, target)
    else:
        try:
            os.link(source, target, follow_symlinks=False)
        except FileExistsError:
            return place(source, free(target.parent, target.name), copy=copy)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            target = _copied(source, target)  # another disk, or one without links
    disk.fsync_directory(target.parent)
    if not copy:
        source.unlink()
    return target


def _is_same(source: Path, target: Path) -> bool:
    return os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False)


def _copied(source: Path, target: Path) -> Path:
    """A whole copy under a name of its own, or none."""
    while True:
        try:
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            break
        except FileExistsError:
            target = free(target.parent, target.name)
    temporary = target.with_name(f".{target.name}.part")
    try:
        shutil.copy2(source, temporary)
        disk.fsync(temporary)
        disk.replace(temporary, target)
    except OSError:
        for left in (temporary, target):
            with contextlib.suppress(OSError):
                left.unlink()
        raise
    return target
