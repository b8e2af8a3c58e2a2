"""Options that the fleet's commands share, and the opening of a fleet from them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from edgeladder.cli.output import Answer
from edgeladder.errors import ConfigError
from edgeladder.fleet import console, inventory
from edgeladder.fleet.account import Account, HostResult
from edgeladder.fleet.crew import Crew
from edgeladder.fleet.transport import Dialer, asyncssh

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


def quiet(result: HostResult) -> None:
    """Say nothing as a host ends."""


def open_fleet(
    path: Path,
    limit: str | None,
    parallel: int,
    timeout: float,
    note: Callable[[HostResult], None] = quiet,
) -> Crew:
    """The hosts that a command line means.

    Raises:
        ConfigError: asyncssh is missing, the inventory is invalid, or nothing is left of it.
    """
    asyncssh()
    opened = inventory.Inventory.open(path)
    for line in opened.notes:
        console.say(line)
    hosts = opened.limit(limit)
    if not hosts:
        raise ConfigError("no hosts are left", where=f"--limit {limit}", remedy="take less away")
    return Crew(Dialer(opened, timeout_seconds=timeout), hosts, parallel, note=note)


def answer(
    account: Account, columns: dict[str, Callable[[HostResult], object]] | None = None
) -> Answer:
    """A command's answer: the account, exit code 6 when a host failed."""
    error = account.error()
    return Answer(
        account.to_dict(),
        lambda: console.account_text(account, columns or {}),
        exit_code=error.exit_code if error else 0,
    )
