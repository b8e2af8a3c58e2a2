"""Adapters that were trained on this very machine, known again where publishers are pinned.

A box that pins a publisher still trains its own adapters, which no publisher signs. It marks them
by a secret of its own (HMAC-SHA256, RFC 2104) that never leaves it:

    adapter.json.mac                                  hexadecimal, of adapter.json's bytes; while
                                                      one replaces another, a line for each
    $XDG_CONFIG_HOME/edgeladder/device_secret         32 random bytes, readable by the owner alone

Machines that pin nobody neither make the secret nor ask for the mark.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgeladder.core import disk
from edgeladder.core.adapter_record import RECORD
from edgeladder.core.errors import ConfigError
from edgeladder.core.failures import known_failure
from edgeladder.core.files import write_text
from edgeladder.core.signature import require_trusted
from edgeladder.core.trusted_keys import pinned_keys

MARK = f"{RECORD}.mac"
_SECRET_BYTES = 32
_MARK_BYTES = 4096  # read of a mark's file
_OTHERS_MAY = 0o077


def secret_path() -> Path:
    """The file of this machine's secret."""
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(base) / "edgeladder" / "device_secret"


def device_secret(*, make: bool) -> bytes | None:
    """This machine's secret, made at its first use.

    Args:
        make: make it where there is none; else None.

    Raises:
        ConfigError: others can read it, or it is none.
        StorageError: it cannot be written.
    """
    path = secret_path()
    try:
        if make and not path.exists():
            disk.make_folders(path.parent)
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            disk.unlink(temporary)  # of a process that was killed
            disk.write_new(temporary, os.urandom(_SECRET_BYTES), 0o600)
            try:
                os.link(temporary, path)  # whoever is first
            except FileExistsError:
                pass
            finally:
                disk.unlink(temporary)
                disk.fsync_directory(path.parent)
        if not path.exists():
            return None
        content, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise known_failure(error, where=str(path)) or error from error
    if mode & _OTHERS_MAY or len(content) != _SECRET_BYTES:
        raise ConfigError(
            "this machine's secret can be read by others, or is none",
            where=str(path),
            remedy="remove it and train again: what it marked was not known to be made here",
        )
    return content


def mark_made_here(folder: Path, record: bytes) -> None:
    """Mark an adapter that this process is about to write, where publishers are pinned.

    The mark of the one that lies there stays beside it: whichever a power cut leaves is known.

    Args:
        folder: where it will lie.
        record: the content that its `adapter.json` will have.

    Raises:
        ConfigError, StorageError: as `device_secret`.
    """
    if not pinned_keys():
        return
    secret = device_secret(make=True)
    assert secret is not None  # made just now
    codes = [_code(secret, record)]
    if is_made_here(folder):
        codes.append(_code(secret, (folder / RECORD).read_bytes()))
    write_text(folder / MARK, "\n".join(codes) + "\n")


def is_made_here(folder: Path) -> bool:
    """Whether this machine marked the adapter as it lies there."""
    import hmac

    path = folder / MARK
    if path.is_symlink() or not path.is_file() or not (folder / RECORD).is_file():
        return False
    secret = device_secret(make=False)
    if secret is None:
        return False
    code = _code(secret, (folder / RECORD).read_bytes()).encode()
    with open(path, "rb") as stream:
        given = stream.read(_MARK_BYTES).split()
    return any(hmac.compare_digest(line, code) for line in given)


def require_trusted_adapter(folder: Path) -> None:
    """Refuse an adapter that neither a pinned publisher signed nor this machine made.

    Raises:
        IntegrityError: so it is.
        ConfigError: keys are pinned and `cryptography` is missing.
    """
    keys = pinned_keys()
    if keys and not is_made_here(folder):
        require_trusted(folder, "adapter", keys)


def journal_code(content: bytes, *, make: bool) -> str | None:
    """What shows that this machine wrote a journal of moves; None: it has no secret.

    Args:
        content: what is written.
        make: make the secret where there is none.

    Raises:
        ConfigError, StorageError: as `device_secret`.
    """
    secret = device_secret(make=make)
    return None if secret is None else _code(secret, content, "journal")


def _code(secret: bytes, record: bytes, kind: str = "adapter") -> str:
    import hashlib
    import hmac

    message = f"edgeladder {kind} made here 1\0".encode() + record
    return hmac.new(secret, message, hashlib.sha256).hexdigest()
