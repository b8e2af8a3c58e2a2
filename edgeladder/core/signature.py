"""Signatures of bundles and adapters: Ed25519 (RFC 8032) by the package `cryptography`.

Signed are the bytes of `manifest.json` or `adapter.json`, which hold the hash of every other file,
behind a word for what they are, so that neither passes for the other. The signature lies beside:

    manifest.json.sig   {"schema_version": 1, "algorithm": "ed25519", "key": ..., "signature": ...}

Hashes without a signature protect against accidents only: who can change a file can change its
hash. Keys are OpenSSH's (`ssh-keygen -t ed25519`), or PEM (`openssl genpkey -algorithm ed25519`).
"""

from __future__ import annotations

import base64
import binascii
import importlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeladder.core import disk
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.failures import known_failure
from edgeladder.core.files import read_json, write_json
from edgeladder.core.plain_files import LARGEST_KEYS_BYTES, read_plain
from edgeladder.core.records import from_json, to_json
from edgeladder.core.trusted_keys import PublicKey, parse_key, pinned_keys

Kind = Literal["bundle", "adapter"]
SIGNED: dict[Kind, str] = {"bundle": "manifest.json", "adapter": "adapter.json"}
SUFFIX = ".sig"
_OTHERS_MAY = stat.S_IRWXG | stat.S_IRWXO
_LARGEST_BYTES = 4096  # of a signature's file


@dataclass(frozen=True, kw_only=True)
class SignatureRecord:
    """A signature's file."""

    schema_version: int = 1
    algorithm: Literal["ed25519"] = "ed25519"
    key: str  # of who signed, as OpenSSH writes it
    signature: str  # base64 of 64 bytes


def signature_path(folder: Path, kind: Kind) -> Path:
    """Where the signature of a bundle or adapter lies."""
    return folder / (SIGNED[kind] + SUFFIX)


def make_key(path: Path) -> PublicKey:
    """Make a publisher's key: `path`, readable by its owner alone, and `path`.pub.

    Raises:
        ConfigError: one of both is there already, or `cryptography` is missing.
        StorageError: they cannot be written.
    """
    public_path = path.with_name(f"{path.name}.pub")
    for taken in (path, public_path):
        if os.path.lexists(taken):
            raise ConfigError(
                "there is a file already, and a key is never replaced",
                where=str(taken),
                remedy="name another file with --out",
            )
    ed25519, serialization = _library("asymmetric.ed25519"), _library("serialization")
    private = ed25519.Ed25519PrivateKey.generate()
    content: bytes = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = _public_half(private)
    try:
        disk.make_folders(path.parent)
        disk.write_new(path, content, 0o600)
        disk.write_new(public_path, f"{public.line} edgeladder publisher\n".encode(), 0o644)
    except (OSError, ValueError) as error:
        raise known_failure(error, where=str(path)) or error from error
    return public


def sign(folder: Path, kind: Kind, key: Path) -> PublicKey:
    """Sign a bundle or adapter that has just been checked; the signature is written atomically.

    Args:
        folder: with the file that is signed.
        key: the publisher's private key.

    Returns:
        The key's public half.

    Raises:
        ConfigError: no such key, one that others can read, or `cryptography` is missing.
        StorageError: the folder cannot be written.
    """
    private = _private_key(key)
    public = _public_half(private)
    signature: bytes = private.sign(_message(folder, kind))
    words = base64.b64encode(signature).decode()
    record = SignatureRecord(key=public.line, signature=words)
    write_json(signature_path(folder, kind), to_json(record))
    return public


def verify(folder: Path, kind: Kind) -> PublicKey | None:
    """Who signed a bundle or adapter; None: nobody did.

    Raises:
        IntegrityError: the signature is not of what lies there, or is none.
        ConfigError: `cryptography` is missing.
    """
    path = signature_path(folder, kind)
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
        raise IntegrityError("not a signature", where=str(path), remedy=_AGAIN)
    try:
        record = from_json(SignatureRecord, read_json(path), where=str(path))
        key = parse_key(record.key, where=str(path))
        signature = base64.b64decode(record.signature, validate=True)
    except (ValueError, binascii.Error, ConfigError) as error:
        raise IntegrityError(f"not a signature: {error}", where=str(path), remedy=_AGAIN) from error
    ed25519 = _library("asymmetric.ed25519")
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(key.raw).verify(
            signature, _message(folder, kind)
        )
    except (ValueError, importlib.import_module("cryptography.exceptions").InvalidSignature):
        raise IntegrityError(
            f"{SIGNED[kind]} is not what {key.fingerprint} signed",
            where=str(path),
            remedy=_AGAIN,
        ) from None
    return key


def require_trusted(folder: Path, kind: Kind, keys: list[PublicKey] | None = None) -> None:
    """Refuse what no pinned publisher signed; where nobody is pinned, everything passes.

    Args:
        folder: a bundle's or an adapter's.
        keys: those that count; None: the ones that are pinned here.

    Raises:
        IntegrityError: unsigned, or signed by somebody else, or changed since.
        ConfigError: keys are pinned and `cryptography` is missing.
    """
    keys = pinned_keys() if keys is None else keys
    if not keys:
        return
    signer = verify(folder, kind)
    if signer not in keys:
        said = "is not signed" if signer is None else f"is signed by {signer.fingerprint}"
        raise IntegrityError(
            f"this {kind} {said}; pinned is {', '.join(key.fingerprint for key in keys)}",
            where=str(folder),
            remedy=f"take the publisher's own {kind}, or have it signed: "
            f"`edgeladder {kind} sign --key FILE`",
        )


_AGAIN = "copy it again from where it was signed, or sign it anew"


def _message(folder: Path, kind: Kind) -> bytes:
    return f"edgeladder {kind} 1\0".encode() + read_plain(folder / SIGNED[kind])


def _library(name: str) -> Any:
    """A module of `cryptography`, which only those who sign or pin need."""
    try:
        return importlib.import_module(f"cryptography.hazmat.primitives.{name}")
    except ImportError as error:
        raise ConfigError(
            "signatures need the package cryptography, which is not installed here",
            remedy="pip install 'edgeladder[sign]'; nothing that is pinned passes without it",
        ) from error


def _public_half(private: Any) -> PublicKey:
    serialization = _library("serialization")
    raw: bytes = private.public_key().public_bytes(
        serialization.Encoding.Raw, serialization.PublicFormat.Raw
    )
    return PublicKey(raw)


def _private_key(path: Path) -> Any:
    try:
        status = path.stat()
        content = read_plain(path, most=LARGEST_KEYS_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read the key: {error}",
            where=str(path),
            remedy="`edgeladder bundle keygen --out FILE` makes one",
        ) from error
    if status.st_mode & _OTHERS_MAY:
        raise ConfigError(
            "others than its owner can read or write this key",
            where=str(path),
            remedy=f"chmod 600 {path}, and make another one if somebody may have copied it",
        )
    serialization, ed25519 = _library("serialization"), _library("asymmetric.ed25519")
    ssh = b"OPENSSH PRIVATE KEY" in content
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        private = load(content, None)
    except Exception as error:  # its own classes, TypeError where a passphrase is asked for
        raise ConfigError(
            f"not a private key without a passphrase: {error}",
            where=str(path),
            remedy="`edgeladder bundle keygen --out FILE` makes one",
        ) from error
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise ConfigError("not an Ed25519 key", where=str(path), remedy="ssh-keygen -t ed25519")
    return private
