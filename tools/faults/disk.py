"""A disk that fails, dies or forgets at its n-th operation, as SQLite's crash tests have one.

The model of a power cut: certain is the content of a file that was fsynced, as it was then, and the
names in a folder that was fsynced, as they were then. What came after may be there or not, each by
itself, and a write may be there in part. `leave` makes the folder what such a cut leaves of it.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
from pathlib import Path
from typing import Any, Literal

from edgeladder.core.disk import Disk

How = Literal["full", "broken", "killed", "torn"]


class PowerCut(BaseException):  # noqa: N818 - an event, that nothing catches
    """The process is gone: after this no operation reaches the disk."""


class FaultyDisk(Disk):
    """Counts operations; the n-th goes wrong.

    Attributes:
        count: operations so far.
    """

    def __init__(self, root: Path, at: int | None = None, how: How = "killed"):
        """Watch a folder, all of which is taken to be on the disk for certain.

        Args:
            root: what `leave` restores.
            at: number of the operation that goes wrong, from 0; None: none does.
            how: `full` (ENOSPC) and `broken` (EIO) raise once and the program goes on; `killed`
                ends it before the operation, `torn` in the middle of it.
        """
        self.root, self.at, self.how = root, at, how
        self.count = 0
        self._dead = False
        self._held: list[int] = []  # keeps inode numbers from being given to other files
        self._open: set[int] = set()  # numbers of those that folders named
        self._files: dict[int, bytes] = {}  # by inode: the content that is certain
        self._folders: dict[int, dict[str, int]] = {}
        for place, _, names in os.walk(root):
            self._keep_folder(Path(place))
            for name in names:
                self._keep_file(Path(place, name))

    def close(self) -> None:
        """Let go of the files held."""
        while self._held:
            os.close(self._held.pop())

    # ---- the operations

    def write(self, descriptor: int, data: Any) -> int:
        """As `Disk`; torn: the first half is written."""
        if self._goes_wrong():
            if self.how == "torn":
                os.write(descriptor, memoryview(data)[: len(data) // 2])
            self._end()
        return super().write(descriptor, data)

    def fsync(self, descriptor: int) -> None:
        """As `Disk`; from here on the content, or the names, are certain."""
        self._step()
        super().fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not path.is_relative_to(self.root):
            return
        if path.is_dir():
            self._keep_folder(path)
        else:
            self._keep_file(path)

    def replace(self, source: Path, target: Path) -> None:
        """As `Disk`."""
        self._step()
        super().replace(source, target)

    def exchange(self, one: Path, other: Path) -> bool:
        """As `Disk`."""
        self._step()
        return super().exchange(one, other)

    def unlink(self, path: Path) -> None:
        """As `Disk`."""
        self._step()
        super().unlink(path)

    def make_folder(self, path: Path) -> None:
        """As `Disk`."""
        self._step()
        super().make_folder(path)

    def remove_folder(self, path: Path) -> None:
        """As `Disk`."""
        self._step()
        super().remove_folder(path)

    def _goes_wrong(self) -> bool:
        if self._dead:
            raise PowerCut
        self.count += 1
        return self.count - 1 == self.at

    def _step(self) -> None:
        if self._goes_wrong():
            self._end()

    def _end(self) -> None:
        if self.how in ("full", "broken"):
            code = errno.ENOSPC if self.how == "full" else errno.EIO
            raise OSError(code, os.strerror(code))
        self._dead = True
        raise PowerCut

    # ---- what is certain

    def _keep_file(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        self._held.append(descriptor)
        inode = os.fstat(descriptor).st_ino
        self._files[inode] = path.read_bytes()

    def _keep_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self._held.append(descriptor)
        names: dict[str, int] = {}
        for entry in os.scandir(path):
            # open, or its number may go to another file once it is removed: a folder would come
            # back as that file
            if entry.inode() not in self._open:
                self._open.add(entry.inode())
                self._held.append(os.open(entry.path, os.O_PATH | os.O_NOFOLLOW))
            names[entry.name] = entry.inode()
        self._folders[os.fstat(descriptor).st_ino] = names

    def leave(self, forget: float, chance: random.Random) -> None:
        """Make the folder what a power cut leaves.

        Args:
            forget: how likely it is for each thing that is not certain to be gone: 0 keeps all (a
                kill), 1 nothing.
            chance: decides.
        """
        files: dict[int, bytes] = {}
        folders: dict[int, dict[str, int]] = {}
        for place, _, names in os.walk(self.root):
            now = {entry.name: entry.inode() for entry in os.scandir(place)}
            inode = os.stat(place).st_ino
            folders[inode] = self._mixed(self._folders.get(inode, {}), now, forget, chance)
            for name in names:
                path = Path(place, name)
                number = path.stat().st_ino
                files[number] = self._content(number, path.read_bytes(), forget, chance)
        for number, names_there in self._folders.items():
            folders.setdefault(number, names_there)
        for number, known in self._files.items():
            files.setdefault(number, known)
        top = os.stat(self.root).st_ino
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        self._make(self.root, top, files, folders)
        self.close()

    def _mixed(
        self, certain: dict[str, int], now: dict[str, int], forget: float, chance: random.Random
    ) -> dict[str, int]:
        """Names of a folder: of each, what it certainly was or what it is now."""
        found = {}
        for name in sorted({*certain, *now}):
            of = certain if chance.random() < forget else now
            if name in of:
                found[name] = of[name]
        return found

    def _content(self, inode: int, now: bytes, forget: float, chance: random.Random) -> bytes:
        known = self._files.get(inode)
        if (known is not None and known == now) or chance.random() >= forget:
            return now
        if known is not None:
            return known
        return now[: chance.choice((0, len(now) // 2))]

    def _make(
        self, place: Path, inode: int, files: dict[int, bytes], folders: dict[int, dict[str, int]]
    ) -> None:
        for name, number in folders[inode].items():
            path = place / name
            if number in folders:
                path.mkdir()
                self._make(path, number, files, folders)
            elif number in files:
                path.write_bytes(files[number])
