"""Where the bytes of pictures come from: a folder, or a .zip read in place.

A source lists relative names with forward slashes and reads one of them at a time. Lists are
compact, because a data set of 50,000 pictures is held by a process that counts its megabytes.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from array import array
from collections import Counter
from pathlib import Path
from typing import Protocol

from edgeladder.core.errors import DataError

_LOCAL_HEADER_BYTES = 30
_LOCAL_SIGNATURE = b"PK\x03\x04"
_ENCRYPTED = 0x1
_MOST_WAYS = 100  # to one folder over links; two links in each of 40 folders would be 2^40
_LARGEST_PICTURE_BYTES = 256 << 20  # a file beyond this is no picture a small box should open


class UnreadableError(Exception):
    """One picture's bytes cannot be had; the message says why."""


class Source(Protocol):
    """Named bytes."""

    where: str  # for error messages
    names: list[str]
    folders: list[str]  # every folder met, whether or not anything is in it

    def read(self, position: int, most: int | None = None) -> bytes:
        """The content of `names[position]`, at most so many bytes. Raises UnreadableError."""


class FolderSource:
    """Files below a folder. Hidden files and folders are passed over."""

    def __init__(self, root: Path):
        self.root = root
        self.where = str(root)
        self.names: list[str] = []
        self.folders: list[str] = []
        self._walk()

    def _walk(self) -> None:
        """List everything below, a folder's content where the folder stands.

        Raises:
            DataError: a folder cannot be listed, or links lead to one in more ways than 100.
        """
        ways: Counter[tuple[int, int] | None] = Counter()
        open_folders = [("", _identity(self.root), iter(self._entries("")))]
        while open_folders:
            below, _, entries = open_folders[-1]
            entry = next(entries, None)
            if entry is None:
                open_folders.pop()
                continue
            name = below + entry.name
            if entry.name.startswith((".", "__MACOSX")):
                continue
            if not _is_folder(entry):
                self.names.append(name)
                continue
            found = _identity(self.root / name)
            if found in [identity for _, identity, _ in open_folders]:
                continue  # a link to a folder that it lies in: everything is listed already
            ways[found] += 1
            if ways[found] > _MOST_WAYS:
                raise DataError(
                    f"links lead to one and the same folder in more than {_MOST_WAYS} ways",
                    where=str(self.root / name)[:300],
                    remedy="remove links: its pictures would be listed each time",
                )
            self.folders.append(name)
            open_folders.append((name + "/", found, iter(self._entries(name))))

    def _entries(self, below: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / below) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"cannot list the folder: {error.strerror}",
                where=str(self.root / below)[:300],
                remedy="make it readable",
            ) from error

    def read(self, position: int, most: int | None = None) -> bytes:
        """One file's bytes."""
        return read_file(self.root / self.names[position], most)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: no folder, and nothing that can be read
        return False


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from any other, whatever it is called here."""
    try:
        status = folder.stat()
    except OSError:
        return None  # gone meanwhile, or no leave: listing it says so
    return status.st_dev, status.st_ino


class FileSource:
    """Files by their own paths: a CSV's rows, or what `predict` was given."""

    def __init__(self, paths: list[str], root: Path, where: str):
        self.root = root
        self.where = where
        self.names = paths
        self.folders: list[str] = []

    def read(self, position: int, most: int | None = None) -> bytes:
        """One file's bytes; a relative path starts at `root`."""
        return read_file(self.root / self.names[position], most)


def read_file(path: Path, most: int | None = None) -> bytes:
    """All bytes of a picture's file.

    Args:
        most: bytes; a larger file is refused before it is read. None: 256 MiB.

    Raises:
        UnreadableError: missing, unreadable, empty or absurdly large.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise UnreadableError("no plain file")  # a device never ends, a pipe waits
        _bound(found.st_size, most)
        content = path.read_bytes()
    except OSError as error:
        raise UnreadableError((error.strerror or str(error)).lower()) from error
    except ValueError as error:  # a NUL in the path
        raise UnreadableError(str(error)) from error
    if not content:
        raise UnreadableError("empty file")
    return content


def _bound(size: int, most: int | None) -> None:
    limit = _LARGEST_PICTURE_BYTES if most is None else min(most, _LARGEST_PICTURE_BYTES)
    if size > limit:
        raise UnreadableError(
            f"file of {size / 1e6:.0f} MB is too large for a picture; {limit / 1e6:.0f} MB fit"
        )


class ZipSource:
    """Members of a .zip, read in place; the archive's directory is kept as three arrays."""

    def __init__(self, path: Path):
        self.path = path
        self.where = str(path)
        self.names: list[str] = []
        self.folders: list[str] = []
        self._offsets = array("q")
        self._packed = array("q")
        self._sizes = array("q")
        self._crcs = array("L")
        self._methods = array("H")
        try:
            with zipfile.ZipFile(path) as archive:
                self._list(archive)
        except (
            zipfile.BadZipFile,
            OSError,
            NotImplementedError,
            ValueError,
            OverflowError,
        ) as error:  # the last: sizes and places beyond 2^63
            raise DataError(
                f"cannot read the archive: {error}",
                where=self.where,
                remedy="copy the .zip again; it may be truncated",
            ) from error
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _list(self, archive: zipfile.ZipFile) -> None:
        for member in sorted(archive.infolist(), key=lambda item: item.filename):
            parts = [part for part in member.filename.split("/") if part not in ("", ".")]
            if not parts or any(part.startswith((".", "__MACOSX")) for part in parts):
                continue
            name = "/".join(parts)
            if member.is_dir():
                self.folders.append(name)
                continue
            self.names.append(name)
            self._offsets.append(member.header_offset)
            self._packed.append(member.compress_size)
            self._sizes.append(member.file_size)
            self._crcs.append(member.CRC)
            self._methods.append(0xFFFF if member.flag_bits & _ENCRYPTED else member.compress_type)

    def read(self, position: int, most: int | None = None) -> bytes:
        """One member's bytes, its checksum verified."""
        size, method = self._sizes[position], self._methods[position]
        # packed and unpacked bytes are in memory together
        _bound(size, None if most is None else max(0, most - self._packed[position]))
        _bound(self._packed[position], most)
        if not size:
            raise UnreadableError("empty file")
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnreadableError("encrypted, or compressed in a way other than deflate")
        try:
            packed = self._packed_bytes(position)
            content = packed if method == zipfile.ZIP_STORED else _inflate(packed, size)
        except (OSError, zlib.error, struct.error) as error:
            raise UnreadableError(f"damaged in the archive: {error}") from error
        if len(content) != size or zlib.crc32(content) != self._crcs[position]:
            raise UnreadableError("damaged in the archive: checksum differs")
        return content

    def _packed_bytes(self, position: int) -> bytes:
        offset = self._offsets[position]
        header = os.pread(self._descriptor, _LOCAL_HEADER_BYTES, offset)
        if header[:4] != _LOCAL_SIGNATURE:
            raise UnreadableError("damaged in the archive: no local header")
        # the local header's own name and extra lengths may differ from the directory's
        name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)
        start = offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        return os.pread(self._descriptor, self._packed[position], start)

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _inflate(packed: bytes, size: int) -> bytes:
    # at most `size` bytes come out, whatever the archive claims: no zip bomb
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size)
