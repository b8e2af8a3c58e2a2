"""Pinned host keys: a box is talked to only if its key is the one somebody accepted.

The file is an ordinary OpenSSH known_hosts, so `ssh -o UserKnownHostsFile=...` reads it too.
Nothing but `fleet trust` ever writes it, and a key that differs from the pin is never taken.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgeladder.core.errors import ConfigError
from edgeladder.core.files import write_text
from edgeladder.core.plain_files import configured_lines
from edgeladder.fleet.inventory import Host
from edgeladder.fleet.outcomes import HostError, HostResult, failed
from edgeladder.fleet.ssh import asyncssh, connection_errors


def fingerprint(key: str) -> str:
    """`SHA256:...` of a public key line, as ssh-keygen -lf prints it."""
    try:
        blob = base64.b64decode(key.split()[1], validate=True)
    except (IndexError, ValueError):
        raise ConfigError(
            "not a public key in known_hosts", remedy="remove the line, then `fleet trust`"
        ) from None
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode()
    return "SHA256:" + digest.rstrip("=")


def _entry(host: Host) -> str:
    return host.address if host.port == 22 else f"[{host.address}]:{host.port}"


class Pins:
    """The known_hosts file of a fleet."""

    def __init__(self, path: Path):
        self.path = path
        self._lines: list[str] = []
        if path.is_file():
            remedy = "name another `known_hosts` in the inventory, or mend this one"
            self._lines = configured_lines(
                path, "the pinned host keys", where=str(path), remedy=remedy
            )

    def keys(self, host: Host) -> list[str]:
        """Pinned keys of a host, each as `type base64`."""
        found = []
        for line in self._lines:
            parts = line.split()
            plain = len(parts) >= 3 and not line.startswith(("#", "@", "|"))
            if plain and _entry(host) in parts[0].split(","):
                found.append(f"{parts[1]} {parts[2]}")
        return found

    def pin(self, host: Host, key: str) -> None:
        """Accept a key for a host that has none."""
        self._lines.append(f"{_entry(host)} {' '.join(key.split()[:2])} {host.name}")
        self._write()

    def forget(self, host: Host) -> bool:
        """Remove a host's keys; True when there were any."""
        kept = [line for line in self._lines if not line.split() or line.split()[0] != _entry(host)]
        changed = kept != self._lines
        self._lines = kept
        if changed:
            self._write()
        return changed

    def _write(self) -> None:
        write_text(self.path, "\n".join(self._lines) + "\n")


@dataclass
class Offer:
    """The key a box shows and how it stands to the pin."""

    host: Host
    key: str
    verdict: Literal["new", "pinned", "changed"]
    pinned: str | None

    @property
    def fingerprint(self) -> str:
        """Of the key shown."""
        return fingerprint(self.key)

    def facts(self) -> dict[str, Any]:
        """For JSON and the table."""
        return {
            "fingerprint": self.fingerprint,
            "key_type": self.key.split()[0],
            "verdict": self.verdict,
            "pinned": self.pinned,
        }


async def offered_key(host: Host, pins: Pins, tunnel: Any, *, timeout_seconds: float) -> Offer:
    """Ask a box for its host key without logging in.

    A pinned host is asked for a key of the pinned type first, so that a box with several keys is
    not taken for a changed one.

    Raises:
        HostError: unreachable, or no answer in time.
    """
    ssh = asyncssh()
    known = pins.keys(host)
    algorithms = sorted({key.split()[0] for key in known}) or None
    with connection_errors(host):
        key = await asyncio.wait_for(_ask(ssh, host, tunnel, algorithms), timeout_seconds)
        if key is None and algorithms:
            key = await asyncio.wait_for(_ask(ssh, host, tunnel, None), timeout_seconds)
    if key is None:
        raise HostError("the box showed no host key", kind="unreachable")
    line = key.export_public_key("openssh").decode().strip()
    shown = " ".join(line.split()[:2])
    verdict: Literal["new", "pinned", "changed"] = (
        "new" if not known else "pinned" if shown in known else "changed"
    )
    pinned = fingerprint(known[0]) if known else None
    return Offer(host, shown, verdict, pinned)


async def _ask(ssh: Any, host: Host, tunnel: Any, algorithms: list[str] | None) -> Any:
    try:
        return await ssh.get_server_host_key(
            host.address,
            host.port,
            tunnel=tunnel or (),
            config=None,
            **({"server_host_key_algs": _signatures(algorithms)} if algorithms else {}),
        )
    except ssh.KeyExchangeFailed:
        return None


def _signatures(key_types: list[str]) -> list[str]:
    """Signature algorithms of key types: RSA keys sign under newer names than their own."""
    found = []
    for name in key_types:
        found += ["rsa-sha2-512", "rsa-sha2-256"] if name == "ssh-rsa" else [name]
    return found


def changed_error(offer: Offer) -> HostError:
    """The refusal of a key that is not the pinned one."""
    return HostError(
        f"host key changed: shows {offer.fingerprint}, pinned is {offer.pinned}",
        kind="hostkey",
        where=offer.host.name,
        remedy="if the box was set up anew, `edgeladder fleet trust --forget "
        f"{offer.host.name}`, then `fleet trust`; if not, somebody is in between",
    )


def unpinned_error(host: Host) -> HostError:
    """The failure of a host whose new key nobody accepted."""
    return HostError(
        "host key not pinned",
        kind="unpinned",
        where=host.name,
        remedy="compare the fingerprint with the box's own (`ssh-keygen -lf "
        "/etc/ssh/ssh_host_ed25519_key.pub`), then `edgeladder fleet trust --yes`",
    )


async def offers(dialer: Any, hosts: list[Host], parallel: int) -> list[HostResult]:
    """The keys of all hosts, changed ones as failures; a new key is in the fact `key`."""
    gate = asyncio.Semaphore(parallel)

    async def ask(host: Host) -> HostResult:
        async with gate:
            try:
                tunnel = await dialer.tunnel(host)
                offer = await offered_key(
                    host, dialer.pins, tunnel, timeout_seconds=dialer.timeout_seconds
                )
            except HostError as error:
                return failed(host.name, error)
        if offer.verdict == "changed":
            result = failed(host.name, changed_error(offer))
            result.facts = offer.facts()
            return result
        facts = offer.facts()
        if offer.verdict == "new":
            facts["key"] = offer.key
        return HostResult(host.name, "unchanged", facts)

    try:
        return list(await asyncio.gather(*(ask(host) for host in hosts)))
    finally:
        await dialer.close()
