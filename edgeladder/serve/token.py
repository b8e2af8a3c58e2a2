"""The token that a service asks for where others than this machine can reach it."""

from __future__ import annotations

import hmac
import secrets
import stat
from pathlib import Path

from edgeladder.core import disk
from edgeladder.core.errors import ConfigError
from edgeladder.core.files import storage_errors
from edgeladder.core.plain_files import LARGEST_KEYS_BYTES, read_plain_text

_RANDOM_BYTES = 24  # 192 bits: no number of tries finds it
_LEAST_CHARACTERS = 16
_ALLOWED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/=")


def new_token() -> str:
    """A fresh one, of letters that need no quoting in an address."""
    return secrets.token_urlsafe(_RANDOM_BYTES)


def token_from(path: Path) -> str:
    """The token in a file, which is made with a fresh one where it is missing.

    Raises:
        ConfigError: others can read the file, or it holds no token.
        StorageError: it cannot be read or made.
    """
    if not path.exists():
        with storage_errors(path):
            disk.write_new(path, (new_token() + "\n").encode(), 0o600)
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError("others can read this token", where=str(path), remedy=f"chmod 600 {path}")
    with storage_errors(path):
        text = read_plain_text(path, most=LARGEST_KEYS_BYTES, errors="replace")
    return checked(text.strip(), str(path))


def checked(token: str, where: str) -> str:
    """The token itself.

    Raises:
        ConfigError: too short, or with characters that no header may have (RFC 6750, 2.1).
    """
    if len(token) < _LEAST_CHARACTERS or not set(token) <= _ALLOWED:
        raise ConfigError(
            f"not a token: at least {_LEAST_CHARACTERS} letters, digits or any of -._~+/= are "
            "needed",
            where=where,
            remedy="remove it, and a fresh one is made",
        )
    return token


def allows(token: str, authorization: str | None) -> bool:
    """Whether an Authorization header holds the token; takes as long whether or not it does."""
    scheme, _, given = (authorization or "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    return same and scheme.lower() == "bearer"
