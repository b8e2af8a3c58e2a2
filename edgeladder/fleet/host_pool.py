"""Work on many hosts at once: bounded, retried, each host's fate its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgeladder.fleet.dialer import Dialer
from edgeladder.fleet.inventory import Host
from edgeladder.fleet.outcomes import FleetOutcome, HostError, HostResult, failed
from edgeladder.fleet.ssh import quiet_asyncssh
from edgeladder.fleet.transport import Box

Work = Callable[[Box], Awaitable[HostResult]]
Note = Callable[[HostResult], None]
Value = TypeVar("Value")


@dataclass
class HostPool:
    """How a fleet command goes to its hosts."""

    dialer: Dialer
    hosts: list[Host]
    parallel: int = 10  # connections at a time; more only crowds the uplink
    tries: int = 3  # per host, where the connection failed or broke
    backoff_seconds: float = 1.0  # before the second try, doubled after each
    note: Note = lambda result: None  # told of each host as it ends

    @property
    def signing_key(self) -> Path | None:
        """The private key that signs what the fleet makes of its boxes' adapters."""
        return self.dialer.inventory.signing_key

    async def each(self, command: str, work: Work) -> FleetOutcome:
        """Do `work` on every host, at most `parallel` at a time.

        Returns:
            The outcome, in the order of the hosts; a failed host never stops another.
        """
        quiet_asyncssh()
        waiting = iter(self.hosts)
        results: dict[str, HostResult] = {}

        async def worker() -> None:
            for host in waiting:  # shared: each host is taken once
                result = await self._one(host, work)
                results[host.name] = result
                self.note(result)

        workers = [asyncio.create_task(worker()) for _ in self.hosts[: max(1, self.parallel)]]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            if not self.dialer.keep:
                await self.dialer.close()
        return FleetOutcome(command, [results[host.name] for host in self.hosts])

    @contextlib.asynccontextmanager
    async def lasting(self) -> AsyncIterator[None]:
        """Keep connections open between several `each`; the outermost closes them."""
        outermost = not self.dialer.keep
        self.dialer.keep = True
        try:
            yield
        finally:
            if outermost:
                self.dialer.keep = False
                await self.dialer.close()

    async def _one(self, host: Host, work: Work) -> HostResult:
        started = time.monotonic()
        for attempt in range(1, self.tries + 1):
            try:
                async with self.dialer.connect(host) as box:
                    result = await work(box)
            except HostError as error:
                result = failed(host.name, error)
                if error.retry and attempt < self.tries:
                    await asyncio.sleep(self.backoff_seconds * 2 ** (attempt - 1))
                    continue
            except Exception as error:  # whatever a box's answer led to is that box's alone
                result = failed(host.name, error)
            result.tries = attempt
            break
        result.seconds = time.monotonic() - started
        return result


class LiveHosts:
    """The hosts of a pool that have not failed yet, through several pieces of work."""

    def __init__(self, pool: HostPool):
        self.everyone = pool
        self.results: dict[str, HostResult] = {}  # the newest of each host

    @property
    def failures(self) -> dict[str, HostResult]:
        """Hosts that have failed."""
        return {name: r for name, r in self.results.items() if r.state == "failed"}

    @property
    def pool(self) -> HostPool:
        """Those that have not."""
        gone = self.failures
        hosts = [host for host in self.everyone.hosts if host.name not in gone]
        return dataclasses.replace(self.everyone, hosts=hosts)

    async def each(self, command: str, work: Work) -> None:
        """Do `work` on every live host."""
        self.take(await self.pool.each(command, work))

    def take(self, outcome: FleetOutcome) -> None:
        """Remember what became of hosts."""
        self.results.update({result.host: result for result in outcome.results})


def run(work: Coroutine[Any, Any, Value]) -> Value:
    """Run a fleet command's coroutine to its end."""
    return asyncio.run(work)
