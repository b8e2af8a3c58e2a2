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
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from edgeladder.core.disk import Disk

How = Literal["full", "broken", "killed", "torn"]


_TICK_NS = 50_000_000  # a file's time of change is this coarse at most
Names = dict[int, dict[str, int]]  # of folders, by inode: a name's inode
Contents = dict[int, bytes]  # of files, by inode
FORGETS = (0.0, 1.0, 0.5)  # how likely what is not certain is gone after a kill


class Tree(tuple["tuple[str, bytes | Tree]", ...]):
    """A folder's content: names in order, each with a file's bytes or a folder's tree."""

    __slots__ = ()


def read_tree(folder: Path) -> Tree:
    """The content of a folder without links."""
    made: list[tuple[str, bytes | Tree]] = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        made.append((path.name, read_tree(path) if path.is_dir() else path.read_bytes()))
    return Tree(made)


def write_tree(folder: Path, tree: Tree) -> None:
    """Make a folder hold exactly this."""
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in tree:
        if isinstance(content, Tree):
            (folder / name).mkdir()
            write_tree(folder / name, content)
        else:
            (folder / name).write_bytes(content)


class PowerCut(BaseException):  # noqa: N818 - an event, that nothing catches
    """The process is gone: after this no operation reaches the disk."""


class FaultyDisk(Disk):
    """Counts operations; the n-th goes wrong.

    Attributes:
        count: operations so far.
    """

    def __init__(self, root: Path | None, at: int | None = None, how: How = "killed"):
        """Watch a folder, all of which is taken to be on the disk for certain.

        Args:
            root: what `leave` restores; None: nothing is forgotten by what goes wrong.
            at: number of the operation that goes wrong, from 0; None: none does.
            how: `full` (ENOSPC) and `broken` (EIO) raise once and the program goes on; `killed`
                ends it before the operation, `torn` in the middle of it.
        """
        self.root, self.at, self.how = root, at, how
        self.count = 0
        self._dead = False
        self._held: list[int] = []  # keeps inode numbers from being given to other files
        self._open: set[int] = set()  # numbers of those that folders named
        self._files: Contents = {}  # by inode: the content that is certain
        self._folders: Names = {}
        self._seen: dict[int, tuple[tuple[int, int], bytes]] = {}  # as read last, of that age
        self._contents: dict[bytes, bytes] = {}  # one object of equal ones
        for place, _, names in os.walk(root) if root else ():
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
        if self.root is None or not path.is_relative_to(self.root):
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
        self._seen.pop(inode, None)
        self._files[inode] = self._read(path)

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
        """Make the folder what a power cut leaves (`left`)."""
        assert self.root is not None
        write_tree(self.root, self.left(forget, chance))
        self.close()

    def left(self, forget: float, chance: random.Random) -> Tree:
        """What a power cut at this moment leaves; the folder stays as it is.

        Args:
            forget: how likely it is for each thing that is not certain to be gone: 0 keeps all (a
                kill), 1 nothing.
            chance: decides.
        """
        return self._left(*self._now(), forget, chance)

    def _now(self) -> tuple[Names, Contents]:
        """All that the folder holds, by inode."""
        assert self.root is not None
        names: Names = {}
        contents: Contents = {}
        for place, _, files in os.walk(self.root):
            there = {entry.name: entry.inode() for entry in os.scandir(place)}
            names[os.stat(place).st_ino] = there
            for name in files:
                contents[there[name]] = self._read(Path(place, name))
        return names, contents

    def _read(self, path: Path) -> bytes:
        """A file's content; read again only where it may have changed."""
        found = path.stat()
        key = (found.st_size, found.st_mtime_ns)
        known, content = self._seen.get(found.st_ino, (None, b""))
        if known == key and time.time_ns() - found.st_mtime_ns > _TICK_NS:
            return content
        content = path.read_bytes()
        content = self._contents.setdefault(content, content)
        self._seen[found.st_ino] = key, content
        return content

    def _left(self, names: Names, contents: Contents, forget: float, chance: random.Random) -> Tree:
        files = {number: self._content(number, content, forget, chance)
                 for number, content in contents.items()}  # fmt: skip
        folders = {number: self._mixed(self._folders.get(number, {}), there, forget, chance)
                   for number, there in names.items()}  # fmt: skip
        assert self.root is not None
        top = os.stat(self.root).st_ino
        return self._tree(top, {**self._files, **files}, {**self._folders, **folders})

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

    def _tree(self, inode: int, files: Contents, folders: Names) -> Tree:
        made: list[tuple[str, bytes | Tree]] = []
        for name, number in folders[inode].items():
            if number in folders:
                made.append((name, self._tree(number, files, folders)))
            elif number in files:
                made.append((name, files[number]))
        return Tree(sorted(made, key=lambda entry: entry[0]))


class Recorder(FaultyDisk):
    """Goes through a command once, and says before each operation what a cut there would leave."""

    def __init__(self, root: Path, take: Callable[[int, How, float, Tree], None]):
        """Watch a folder as `FaultyDisk` does.

        Args:
            root: the folder.
            take: is given number of the operation, how it ends, how much is forgotten, what is
                left; killed or torn.
        """
        super().__init__(root)
        self._take = take

    def write(self, descriptor: int, data: Any) -> int:
        """As `Disk`; for a torn one the first half is written and taken back."""
        half, size = memoryview(data)[: len(data) // 2], os.fstat(descriptor).st_size
        where = os.lseek(descriptor, 0, os.SEEK_CUR)
        with open(f"/proc/self/fd/{descriptor}", "rb") as stream:
            stream.seek(where)
            before = stream.read(len(half))
        written = os.write(descriptor, half)
        self._seen.pop(os.fstat(descriptor).st_ino, None)
        self._take(self.count, "torn", 0.0, self.left(0.0, random.Random(0)))
        os.ftruncate(descriptor, size)
        os.lseek(descriptor, -written, os.SEEK_CUR)
        if before:  # else it was at the end, where a log's descriptor could write alone
            os.pwrite(descriptor, before, where)
        done = super().write(descriptor, data)
        self._seen.pop(os.fstat(descriptor).st_ino, None)
        return done

    def _goes_wrong(self) -> bool:
        now = self._now()
        for forget in FORGETS:
            left = self._left(*now, forget, random.Random(f"{self.count}{forget}"))
            self._take(self.count, "killed", forget, left)
        return super()._goes_wrong()
