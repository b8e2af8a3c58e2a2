"""Where a bundle's files may be: inside the bundle, plain, each with its size and hash.

What a manifest names is opened by programs written in C; a name that leads out of the bundle, a
link or a device would have them read, or map, something else. Names are judged as text first and
then as what lies there, so that nothing outside is even looked at.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from edgeladder.core.errors import IntegrityError

AGAIN = "copy or export the bundle again"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST_NAME = 1024


def is_confined(name: str) -> bool:
    """Whether a name, as text, stays below the folder it is meant for.

    Relative, `/` between its parts, none of them empty, `.` or `..`, no backslash and nothing that
    does not print.
    """
    parts = name.split("/")
    return (
        0 < len(name) <= _LONGEST_NAME
        and name.isprintable()
        and "\\" not in name
        and not any(part in ("", ".", "..") for part in parts)
    )


def is_sha256(text: str) -> bool:
    """Whether text is a SHA-256 in lower-case hexadecimal."""
    return _SHA256.fullmatch(text) is not None


def require_confined(name: str, *, where: str) -> None:
    """Refuse a name that leads elsewhere.

    Raises:
        IntegrityError: absolute, climbing, or not a plain relative name.
    """
    if not is_confined(name):
        raise IntegrityError(f"{name[:200]!r} leads out of the bundle", where=where, remedy=AGAIN)


def plain_size(folder: Path, name: str) -> int:
    """Size in bytes of a plain file of a folder, reached through plain folders.

    Raises:
        IntegrityError: the name leads out, there is no such file, or there is a link, a device or
            anything else than a file on the way.
    """
    require_confined(name, where=str(folder))
    path = folder
    for part in PurePosixPath(name).parts:
        path = path / part
        try:
            status = os.lstat(path)
        except OSError:
            raise IntegrityError(
                f"the bundle lacks {name}", where=str(folder), remedy=AGAIN
            ) from None
        if stat.S_ISLNK(status.st_mode):
            raise IntegrityError(
                f"{name} is a link, or lies behind one",
                where=str(path),
                remedy="put the file itself there",
            )
    if not stat.S_ISREG(status.st_mode):
        raise IntegrityError(f"{name} is no plain file", where=str(path), remedy=AGAIN)
    return status.st_size


def require_listed(names: Iterable[str], listed: Iterable[str], *, where: str) -> None:
    """Refuse a manifest that names a file without giving its hash.

    Raises:
        IntegrityError: naming the first such file.
    """
    unlisted = sorted(set(names) - set(listed))
    if unlisted:
        raise IntegrityError(
            f"the manifest names {unlisted[0][:200]!r} and does not list it under `files`",
            where=where,
            remedy=AGAIN,
        )
