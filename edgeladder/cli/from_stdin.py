"""`predict -`: what comes on stdin is one picture's bytes, or paths, one a line."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgeladder.core.errors import DataError

STDIN = "-"
_MOST_BYTES = 256 << 20  # as of a picture's file
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")


@contextlib.contextmanager
def spelt_out(paths: Sequence[Path]) -> Iterator[list[str]]:
    """The paths as text, `-` replaced by what came on stdin.

    A picture's bytes wait in a file of their own, which only this user reads, and is removed.

    Raises:
        DataError: nothing came, or more than a picture may have.
    """
    if STDIN not in map(str, paths):
        yield [str(path) for path in paths]
        return
    content = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if not content.strip() or len(content) > _MOST_BYTES:
        raise DataError(
            "nothing came on stdin" if not content.strip() else "more came than a picture has",
            where="-",
            remedy="edgeladder predict - < picture.jpg, or: ls *.jpg | edgeladder predict -",
        )
    with contextlib.ExitStack() as stack:
        if is_picture(content):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeladder-"))
            file = Path(folder, "stdin")
            file.write_bytes(content)
            found = [str(file)]
        else:
            found = paths_in(content)
        yield [item for path in paths for item in (found if str(path) == STDIN else [str(path)])]


def is_picture(content: bytes) -> bool:
    """Whether bytes begin as a picture's file does; paths do not."""
    named = content[:4] == b"RIFF" or content[4:8] == b"ftyp"  # WebP; AVIF and its kin
    return named or content.startswith(_BEGINNINGS)


def paths_in(content: bytes) -> list[str]:
    """Paths, one a line, or between NULs as `find -print0` writes them."""
    parts = content.split(b"\0") if b"\0" in content else content.splitlines()
    return [os.fsdecode(part) for part in parts if part.strip()]


def as_asked(path: str, paths: Sequence[Path]) -> str:
    """`-` for the picture that came on stdin, any other path as it is."""
    stdin = STDIN in map(str, paths) and Path(path).name == "stdin"
    return STDIN if stdin and Path(path).parent.name.startswith("edgeladder-") else path
