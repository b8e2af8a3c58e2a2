"""Options that the fleet's commands share, and the opening of a fleet from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from edgeladder.cli.output import Answer
from edgeladder.core.errors import ConfigError
from edgeladder.core.trusted_keys import pin
from edgeladder.fleet import console
from edgeladder.fleet.dialer import Dialer
from edgeladder.fleet.host_pool import HostPool
from edgeladder.fleet.inventory import Inventory as Fleet
from edgeladder.fleet.outcomes import FleetOutcome, HostResult
from edgeladder.fleet.ssh import asyncssh

INVENTORY = Path("fleet.yaml")
OUT = Path("fleet")
Inventory = Annotated[
    Path, typer.Option("--inventory", "-i", help="Inventory: YAML, or Ansible's as it is.")
]
Limit = Annotated[
    str | None,
    typer.Option("--limit", help="Hosts, groups, tags, globs, comma-separated; !x takes away."),
]
Parallel = Annotated[int, typer.Option("--parallel", min=1, max=100, help="Connections at a time.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds a box may be silent.")]
Job = Annotated[
    str | None, typer.Option("--job", help="Job id. [default: the one `fleet train` computes]")
]
Out = Annotated[Path, typer.Option("--out", help="Folder for what is pulled.")]
Poll = Annotated[float, typer.Option("--poll", min=0.1, help="Seconds between looks.")]


Patience = Annotated[
    float, typer.Option("--patience", help="When it waits: seconds a box may be unreachable.")
]
JobId = Annotated[str, typer.Option("--job", help="Job id, as `fleet train` printed it.")]


def open_fleet(
    inventory: Inventory = INVENTORY,
    limit: Limit = None,
    parallel: Parallel = 10,
    timeout: Timeout = 30.0,
) -> HostPool:
    """The hosts that a command line means.

    Raises:
        ConfigError: asyncssh is missing, the inventory is invalid, or nothing is left of it.
    """
    asyncssh()
    opened = Fleet.open(inventory)
    pin(opened.trusted_keys)  # for whatever this command opens here
    for line in opened.notes:
        console.say(line)
    hosts = opened.limit(limit)
    if not hosts:
        raise ConfigError("no hosts are left", where=f"--limit {limit}", remedy="take less away")
    return HostPool(Dialer(opened, timeout_seconds=timeout), hosts, parallel)


def answer(
    outcome: FleetOutcome, columns: dict[str, Callable[[HostResult], object]] | None = None
) -> Answer:
    """A command's answer: the outcome, exit code 6 when a host failed."""
    error = outcome.error()
    return Answer(
        outcome.to_dict(),
        lambda: console.outcome_text(outcome, columns or {}),
        exit_code=error.exit_code if error else 0,
    )
