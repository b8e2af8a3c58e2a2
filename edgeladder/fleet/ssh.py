"""asyncssh, imported only when a fleet is opened, and its errors in our words."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

from edgeladder.core.errors import ConfigError
from edgeladder.fleet.inventory import Host
from edgeladder.fleet.outcomes import HostError


def asyncssh() -> Any:
    """The asyncssh module.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module("asyncssh")
    except ImportError as error:
        raise ConfigError(
            "the fleet commands need asyncssh", remedy="pip install 'edgeladder[fleet]'"
        ) from error


def quiet_asyncssh() -> None:
    """Keep asyncssh's own log at errors: it would print hosts and users at every connection."""
    asyncssh().set_log_level("ERROR")


@contextlib.contextmanager
def connection_errors(host: Host) -> Iterator[None]:
    """Name what went wrong on the way to a box, without anything secret.

    Raises:
        HostError: for each of asyncssh's and the system's ways to fail.
    """
    ssh = asyncssh()
    where = f"{host.address}:{host.port}"
    try:
        yield
    except ssh.HostKeyNotVerifiable as error:
        raise HostError(f"host key refused: {error.reason}", kind="hostkey", where=where) from error
    except ssh.PermissionDenied as error:
        raise HostError(
            f"login refused for {host.user or 'this user'}",
            kind="login",
            where=where,
            remedy="add the fleet's public key to the box's authorized_keys, name its private "
            "key in the inventory or load it into ssh-agent",
        ) from error
    except (ssh.KeyImportError, ssh.KeyEncryptionError) as error:
        raise HostError(
            f"cannot use the private key: {error}",
            kind="login",
            where=host.key,
            remedy="load a key with a passphrase into ssh-agent: passphrases are never asked for",
        ) from error
    except (asyncio.TimeoutError, TimeoutError, ssh.TimeoutError) as error:
        raise HostError("no answer in time", kind="timeout", where=where) from error
    except (ssh.ConnectionLost, ssh.ChannelOpenError, BrokenPipeError, EOFError) as error:
        raise HostError("the connection broke", kind="lost", where=where) from error
    except ssh.DisconnectError as error:
        raise HostError(f"disconnected: {error.reason}", kind="lost", where=where) from error
    except FileNotFoundError as error:
        raise HostError(
            "no such private key",
            kind="login",
            where=str(error.filename),
            remedy="correct `key` in the inventory",
        ) from error
    except OSError as error:
        raise HostError(
            f"cannot connect: {error.strerror or error}", kind="unreachable", where=where
        ) from error
