"""Reading a file that a person, or a folder from elsewhere, names: it must be one, and end.

`/dev/zero` never ends, a pipe waits for who writes to it, and a file of a terabyte under a list's
name fills the memory: each is refused before a byte is read. Opening alone can already do harm
(`/dev/watchdog` restarts the machine), so what lies there is looked at first, and once more on
what was opened.
"""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path
from typing import BinaryIO

from edgeladder.core.errors import ConfigError

LARGEST_KEYS_BYTES = 1 << 20  # keys, tokens, certificates: a line each
LARGEST_TEXT_BYTES = 16 << 20  # what people write: options, inventories, profiles, names
LARGEST_RECORD_BYTES = 256 << 20  # what a program writes: records, lists of a million pictures
_BLOCK_BYTES = 1 << 16


class NotPlainError(ValueError):
    """There is no plain file, or one too large for what it should be; the message says which."""


def open_plain(path: str | Path) -> BinaryIO:
    """A plain file, opened to read its bytes; links are followed.

    Raises:
        NotPlainError: a pipe, a device, a socket or a folder, or a NUL in the path.
        OSError: absent or unreadable.
    """
    _require_plain(os.stat(path))
    # without waiting: another may put a pipe there meanwhile
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_plain(os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_plain(path: str | Path, *, most: int = LARGEST_RECORD_BYTES) -> bytes:
    """All of a plain file.

    Args:
        most: bytes; a larger file is refused before it is read.

    Raises:
        NotPlainError: no plain file, or larger than `most`.
        OSError: absent or unreadable.
    """
    with open_plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(size + 1) or b"" if size <= most else b""
        # a file of /proc tells no size, and another may grow
        while content and len(content) <= most and (more := stream.read(_BLOCK_BYTES)):
            content += more
    if size > most or len(content) > most:
        raise NotPlainError(f"larger than the {most >> 20} MiB that such a file may have")
    return content


def read_plain_text(
    path: str | Path,
    *,
    most: int = LARGEST_TEXT_BYTES,
    encoding: str = "utf-8",
    errors: str = "strict",
) -> str:
    """All of a plain text file, its line ends as newlines.

    Raises:
        NotPlainError: no plain file, or larger than `most` bytes.
        UnicodeDecodeError: of another encoding, where `errors` is "strict"; a ValueError too.
        OSError: absent or unreadable.
    """
    with io.TextIOWrapper(
        io.BytesIO(read_plain(path, most=most)), encoding=encoding, errors=errors
    ) as text:
        return text.read()


def configured_lines(
    path: Path, what: str, *, where: str, remedy: str, most: int = LARGEST_TEXT_BYTES
) -> list[str]:
    """Lines of a text file that an option or a setting names.

    Args:
        what: is in it, for the error.

    Raises:
        ConfigError: absent, unreadable, no plain UTF-8 text, or larger than `most` bytes.
    """
    try:
        return read_plain_text(path, most=most).splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {what}: {error}", where=where, remedy=remedy) from error


def _require_plain(status: os.stat_result) -> None:
    kinds = {
        stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder",
    }  # fmt: skip
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise NotPlainError(f"{kinds.get(kind, 'something')} where a plain file is needed")
