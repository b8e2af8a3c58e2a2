"""Files that are complete or absent: atomic writes, hashes, safetensors without surprises."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeladder.core.failures import known_failure
from edgeladder.core.ownership import Kind, require_ours
from edgeladder.core.printable import json_text

_HASH_BLOCK_BYTES = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB blocks so that memory does not grow with it."""
    import hashlib  # here, because OpenSSL costs the waiting supervisor 5 MB

    digest = hashlib.sha256()
    with open(path, "rb") as stream:
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


def fsync_directory(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            yield temporary
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
            fsync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write a whole UTF-8 text file atomically."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write readable JSON atomically, keys in the order given."""
    write_text(path, json_text(content) + "\n")


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
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        os.chmod(temporary, 0o755)  # mkdtemp makes it 0700
        try:
            yield temporary
            require_ours(folder, kind, option=option)  # minutes may have gone by
            retired = None
            if folder.exists():
                retired = folder.with_name(f".{folder.name}.{os.getpid()}.old")
                os.replace(folder, retired)
            os.replace(temporary, folder)
            fsync_directory(folder.parent)
            if retired is not None:
                shutil.rmtree(retired)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def read_json(path: Path) -> Any:
    """Parse a JSON file (UTF-8).

    Raises:
        ValueError: not JSON, or nested deeper than the parser goes.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
