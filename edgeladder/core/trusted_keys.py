"""Publishers' keys that this machine, fleet or command pins.

A key is one line as OpenSSH writes it, `ssh-ed25519 AAAA... comment`. Pinned are all lines of
`/etc/edgeladder/trusted_keys`, of `$XDG_CONFIG_HOME/edgeladder/trusted_keys` (`~/.config` by
default), of what `EDGELADDER_TRUSTED_KEYS` names (files, or the lines themselves) and of
`--trust-key`, which goes through the environment, so that worker processes pin the same keys.
Where any is pinned, what none of them signed is refused; a source that is there and empty pins
nobody and is an error.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeladder.core.errors import ConfigError
from edgeladder.core.plain_files import LARGEST_KEYS_BYTES, configured_lines

VARIABLE = "EDGELADDER_TRUSTED_KEYS"
SYSTEM_FILE = Path("/etc/edgeladder/trusted_keys")
KEY_TYPE = "ssh-ed25519"
_PREFIX = b"\0\0\0\x0b" + KEY_TYPE.encode() + b"\0\0\0\x20"  # RFC 8709: type, then 32 bytes
_KEY_BYTES = 32


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key."""

    raw: bytes  # 32 bytes

    @property
    def line(self) -> str:
        """As OpenSSH writes it, without a comment."""
        return f"{KEY_TYPE} {base64.b64encode(_PREFIX + self.raw).decode()}"

    @property
    def fingerprint(self) -> str:
        """`SHA256:...`, as `ssh-keygen -lf` shows it."""
        import hashlib

        digest = hashlib.sha256(_PREFIX + self.raw).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def parse_key(line: str, *, where: str) -> PublicKey:
    """The key of one line.

    Raises:
        ConfigError: not an Ed25519 key as OpenSSH writes it.
    """
    words = line.split()
    try:
        if len(words) < 2 or words[0] != KEY_TYPE:
            raise ValueError
        content = base64.b64decode(words[1], validate=True)
        if not content.startswith(_PREFIX) or len(content) != len(_PREFIX) + _KEY_BYTES:
            raise ValueError
    except (ValueError, binascii.Error):
        raise ConfigError(
            f"not an Ed25519 public key: {line[:60]!r}",
            where=where,
            remedy=f"write `{KEY_TYPE} AAAA...` a line: the .pub file beside the publisher's key",
        ) from None
    return PublicKey(content[len(_PREFIX) :])


def read_keys(path: Path) -> list[PublicKey]:
    """Every key of a file; empty lines and lines that begin with # are passed over.

    Raises:
        ConfigError: unreadable, no key in it, or a line that is none.
    """
    lines = configured_lines(
        path, "trusted keys", where=str(path), remedy="name a .pub file", most=LARGEST_KEYS_BYTES
    )
    keys = [
        parse_key(line, where=f"{path}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not keys:
        raise ConfigError(
            "no key in this file of trusted keys",
            where=str(path),
            remedy=f"write `{KEY_TYPE} AAAA...` a line, or remove the file to pin nobody",
        )
    return keys


def parse_or_read(item: str) -> list[PublicKey]:
    """The key of a line, or those of the file that is named.

    Raises:
        ConfigError: neither.
    """
    item = item.strip()
    if item.startswith(f"{KEY_TYPE} "):
        return [parse_key(item, where=VARIABLE)]
    return read_keys(Path(os.path.expanduser(item)))


def pin(keys: Iterable[PublicKey]) -> None:
    """Pin further keys in this process and in those that it starts."""
    lines = [key.line for key in keys]
    if not lines:
        return
    before = os.environ.get(VARIABLE, "")
    os.environ[VARIABLE] = "\n".join([*filter(None, [before]), *lines])


def pinned_keys() -> list[PublicKey]:
    """All keys that are pinned here; empty where nobody is.

    Raises:
        ConfigError: a source that is there holds no keys.
    """
    config = Path(os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))
    found: list[PublicKey] = []
    for path in (SYSTEM_FILE, config / "edgeladder" / "trusted_keys"):
        if os.path.lexists(path):
            found += read_keys(path)
    for line in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split("\n"))):
        items = [line] if line.startswith(KEY_TYPE) else line.split(os.pathsep)
        for item in filter(None, items):
            found += parse_or_read(item)
    return list(dict.fromkeys(found))
