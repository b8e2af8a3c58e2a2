"""Files that are complete or absent: atomic writes, hashes, safetensors without surprises."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeladder.core import disk
from edgeladder.core.failures import known_failure
from edgeladder.core.ownership import Kind, require_ours
from edgeladder.core.plain_files import open_plain, read_plain
from edgeladder.core.printable import json_parts

_HASH_BLOCK_BYTES = 1 << 20
_NEW, _OLD = ".new", ".old"  # ends of names, after the process id, while a folder is built


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a plain file, read in 1 MiB blocks so that memory does not grow with it."""
    import hashlib  # here, because OpenSSL costs the waiting supervisor 5 MB

    digest = hashlib.sha256()
    with open_plain(path) as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_bytes(content: bytes) -> str:
    """Hex SHA-256 of some bytes."""
    import hashlib  # as above

    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk, or a path that cannot be, into an error that names the path.

    Raises:
        StorageError: on ENOSPC, EDQUOT, EROFS, EACCES, EPERM or EFBIG inside the block.
        ConfigError: a path too long, below a file, or with a NUL or bytes that are no UTF-8.
    """
    try:
        yield
    except (OSError, UnicodeEncodeError, ValueError) as error:
        known = known_failure(error, where=str(path))
        if known is None:
            raise
        raise known from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is fsynced and renamed over `path`.

    A reader sees the old file or the new one, never a part (tmp, fsync, rename, fsync of the
    directory). On any error the temporary file is removed and `path` is as it was.

    Raises:
        StorageError: the disk is full or read-only.
    """
    path = Path(path)
    with storage_errors(path):
        disk.make_folders(path.parent)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            yield temporary
            os.chmod(temporary, 0o644)
            disk.fsync(temporary)
            disk.replace(temporary, path)
        finally:
            disk.unlink(temporary)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path) as temporary, disk.create(temporary) as stream:
        stream.write(content)


def write_text(path: Path, content: str) -> None:
    """Write a whole UTF-8 text file atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON atomically, keys in the order given."""
    with replacing(path) as temporary, disk.create(temporary) as stream:
        for part in json_parts(content):
            stream.write(part.encode("utf-8"))
        stream.write(b"\n")


@contextlib.contextmanager
def building(folder: Path, kind: Kind, *, option: str = "--out") -> Iterator[Path]:
    """Yield a new folder beside `folder`; on success it takes its place whole, else it is removed.

    Args:
        folder: what to make; a link to a folder stays one.
        kind: what is made: only the same of EdgeLadder's own making is replaced.
        option: the option that named `folder`, for the error.

    Raises:
        ConfigError: there is something that EdgeLadder did not make; it is as it was.
        StorageError: the disk is full or read-only.
    """
    require_ours(folder, kind, option=option)
    folder = Path(os.path.realpath(folder))
    with storage_errors(folder):
        disk.make_folders(folder.parent)
        _clear_away(folder)
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}{_NEW}")
        disk.make_folders(temporary)
        try:
            yield temporary
            require_ours(folder, kind, option=option)  # minutes may have gone by
            disk.fsync_tree(temporary)  # before it has its name: a name is a promise
            _take_place(temporary, folder)
        finally:
            disk.remove_tree(temporary)


def _take_place(new: Path, folder: Path) -> None:
    """Give a finished folder its name; what had it is at `new` or gone."""
    if not folder.exists():
        disk.replace(new, folder)
    elif not disk.exchange(new, folder):
        # a file system without an exchange: for a moment neither has the name, and whoever comes
        # next after a power cut in it puts the old one back
        retired = folder.with_name(f".{folder.name}.{os.getpid()}{_OLD}")
        disk.replace(folder, retired)
        disk.replace(new, folder)
        disk.remove_tree(retired)


def _clear_away(folder: Path) -> None:
    """Remove what killed processes left of building `folder`; put back what they had moved."""
    prefix = f".{folder.name}."
    for path in [p for p in folder.parent.iterdir() if p.name.startswith(prefix)]:
        owner = path.name[len(prefix) :].removesuffix(_NEW).removesuffix(_OLD)
        if not owner.isdigit() or (owner != str(os.getpid()) and Path("/proc", owner).exists()):
            continue
        if path.name.endswith(_OLD) and not folder.exists():
            disk.replace(path, folder)
        else:
            disk.remove_tree(path)


def real_path(path: str | Path) -> Path:
    """A whole path, links followed; where they go in a circle, or it can be none, as it is.

    For comparing paths that old records name: `Path.resolve` raises where these are none.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a NUL, or what is not UTF-8
        return Path(path)


def read_json(path: Path) -> Any:
    """Parse a JSON file (UTF-8).

    Raises:
        ValueError: not JSON, nested deeper than the parser goes, no plain file, or above 256 MiB.
    """
    try:
        return json.loads(read_plain(path).decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
