"""Connections to the hosts of an inventory: pinned keys, jump hosts, idle ones kept."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from edgeladder.fleet.inventory import Host, Inventory, jump_host
from edgeladder.fleet.outcomes import HostError
from edgeladder.fleet.ssh import asyncssh, connection_errors
from edgeladder.fleet.transport import Box
from edgeladder.fleet.trust import Pins, changed_error, offered_key

KEPT_CONNECTIONS = 64  # a look every few seconds need not shake hands anew; bounds memory


class Dialer:
    """Opens connections to the hosts of an inventory, jump hosts shared."""

    def __init__(self, inventory: Inventory, *, timeout_seconds: float = 30.0):
        self.inventory = inventory
        self.pins = Pins(inventory.known_hosts)
        self.timeout_seconds = timeout_seconds
        self.keep = False  # connections for the next piece of work on the same host
        self._kept: dict[str, Any] = {}
        self._jumps: dict[str, Any] = {}
        self._jump_locks: dict[str, asyncio.Lock] = {}

    @contextlib.asynccontextmanager
    async def connect(self, host: Host) -> AsyncIterator[Box]:
        """A connected box, closed at the end unless connections are kept.

        Raises:
            HostError: unreachable, not pinned, another key, or the login is refused.
        """
        connection = self._kept.pop(host.name, None)
        if connection is None or connection.is_closed():
            connection = await self._open(host, await self.tunnel(host))
        well = False
        try:
            yield Box(host, connection, self.timeout_seconds)
            well = True
        finally:
            if well and self.keep and len(self._kept) < KEPT_CONNECTIONS:
                self._kept[host.name] = connection
            else:
                await _close(connection)

    async def tunnel(self, host: Host) -> Any:
        """The open connection to a host's jump host, or None."""
        if host.jump is None:
            return None
        gate = jump_host(host.jump, self.inventory, host)
        lock = self._jump_locks.setdefault(gate.name, asyncio.Lock())
        async with lock:
            connection = self._jumps.get(gate.name)
            if connection is None or connection.is_closed():
                connection = await self._open(gate, await self.tunnel(gate))
                self._jumps[gate.name] = connection
            return connection

    async def close(self) -> None:
        """Close the connections that were kept, the jump hosts' last."""
        for connections in (self._kept, self._jumps):
            await asyncio.gather(*(_close(connection) for connection in connections.values()))
            connections.clear()

    async def _open(self, host: Host, tunnel: Any) -> Any:
        ssh = asyncssh()
        keys = self.pins.keys(host)
        if not keys:
            raise HostError(
                "host key unknown",
                kind="unpinned",
                where=host.name,
                remedy=f"edgeladder fleet trust --limit {host.name}",
            )
        trusted = [ssh.import_public_key(key) for key in keys]
        options: dict[str, Any] = {}
        if host.key:
            options["client_keys"] = [os.path.expanduser(host.key)]
        if host.user:
            options["username"] = host.user
        try:
            with connection_errors(host):
                return await asyncio.wait_for(
                    ssh.connect(
                        host.address,
                        host.port,
                        tunnel=tunnel or (),
                        config=None,  # the inventory alone says how
                        known_hosts=(trusted, [], []),
                        preferred_auth="publickey",
                        password_auth=False,
                        kbdint_auth=False,
                        connect_timeout=self.timeout_seconds,
                        login_timeout=self.timeout_seconds,
                        keepalive_interval=self.timeout_seconds / 3,
                        keepalive_count_max=3,
                        **options,
                    ),
                    self.timeout_seconds * 1.5,
                )
        except HostError as error:
            if error.kind != "hostkey":
                raise
            offer = await offered_key(host, self.pins, tunnel, timeout_seconds=self.timeout_seconds)
            raise (changed_error(offer) if offer.verdict == "changed" else error) from error


async def _close(connection: Any) -> None:
    connection.close()
    try:
        await asyncio.wait_for(connection.wait_closed(), 5)
    except asyncio.TimeoutError:
        connection.abort()
