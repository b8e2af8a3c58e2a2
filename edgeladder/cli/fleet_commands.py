"""`edgeladder fleet`: many boxes over SSH. Getting them ready; jobs and rounds are beside this."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from edgeladder.cli import fleet_job_commands, fleet_round_commands
from edgeladder.cli import options as common
from edgeladder.cli.command import App
from edgeladder.cli.fleet_options import Patience, answer, open_fleet
from edgeladder.cli.gathered import gathered
from edgeladder.cli.output import Answer
from edgeladder.core.errors import ConfigError
from edgeladder.fleet import box_checks, console, host_pool, install, push, trust
from edgeladder.fleet.outcomes import FleetOutcome, HostResult, failed
from edgeladder.fleet.remote_jobs import Waiting

app = App(
    help="Many boxes over SSH: push, train, watch, pull, aggregate.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

EXAMPLE = """\
# The boxes of a fleet. A host's values win over its groups', those over the defaults.
defaults:
  user: pi
  key: ~/.ssh/id_ed25519   # or none: ssh-agent and the usual keys; passwords are never used
  root: ~/edgeladder       # all that edgeladder keeps on a box
  data: ~/pictures         # a box's own pictures: class/picture.jpg
groups:
  barn: {device: raspberry-pi-5, budget: 2GB}
hosts:
  gate: {address: gate.example.org, tags: [jump]}
  barn-1: {address: 10.0.0.11, groups: [barn], jump: gate}
  barn-2: {address: 10.0.0.12, groups: [barn], jump: gate, port: 2222}
"""


@app.command()
def example() -> Answer:
    """Print an inventory to start from."""
    return Answer({"inventory": EXAMPLE}, EXAMPLE.rstrip())


@dataclass(frozen=True)
class _Wish:
    """What `fleet trust` is to do with the keys it is shown."""

    pin_new: bool
    ask: bool
    expected: str | None


@app.command("trust")
@gathered(fleet=open_fleet)
def trust_command(
    fleet: host_pool.HostPool,
    yes: Annotated[bool, typer.Option("--yes", help="Pin new keys without asking.")] = False,
    fingerprint: Annotated[
        str | None, typer.Option("--fingerprint", help="Pin only a key of this SHA256:...")
    ] = None,
    forget: Annotated[
        str | None, typer.Option("--forget", metavar="HOST", help="Remove a host's pinned key.")
    ] = None,
    as_json: common.Json = False,
) -> Answer:
    """Show the boxes' host keys and pin new ones; a changed key is refused."""
    if forget is not None:
        host = fleet.dialer.inventory.host(forget)
        if host is None:
            raise ConfigError(
                f"unknown host {forget!r}",
                where="--forget",
                remedy="name a host as the inventory does",
            )
        gone = fleet.dialer.pins.forget(host)
        return answer(FleetOutcome("trust", [HostResult(forget, "done" if gone else "unchanged")]))
    wish = _Wish(yes or fingerprint is not None, sys.stdin.isatty() and not as_json, fingerprint)
    outcome = FleetOutcome(
        "trust", host_pool.run(trust.offers(fleet.dialer, fleet.hosts, fleet.parallel))
    )
    _pin(outcome, fleet, wish)
    outcome.facts["known_hosts"] = str(fleet.dialer.pins.path)
    columns = ("verdict", "fingerprint")
    return answer(outcome, {column: console.fact(column) for column in columns})


def _pin(outcome: FleetOutcome, fleet: host_pool.HostPool, wish: _Wish) -> None:
    """Pin what is new and wanted; what is left unpinned is a failure."""
    hosts = {host.name: host for host in fleet.hosts}
    for index, result in enumerate(outcome.results):
        if result.state == "failed" or result.facts["verdict"] != "new":
            continue
        shown, key = result.facts["fingerprint"], str(result.facts.pop("key"))
        wanted = wish.pin_new and wish.expected in (None, shown)
        if not wish.pin_new and wish.ask:
            wanted = typer.confirm(f"{result.host}: pin {shown}?", err=True)
        if wanted:
            fleet.dialer.pins.pin(hosts[result.host], key)
            result.facts["verdict"], result.state = "pinned now", "done"
        else:
            outcome.results[index] = failed(result.host, trust.unpinned_error(hosts[result.host]))
            outcome.results[index].facts = result.facts


@app.command("doctor")
@gathered(fleet=open_fleet)
def doctor_command(
    fleet: host_pool.HostPool,
    as_json: common.Json = False,
) -> Answer:
    """Probe all boxes: Python, wheels, memory, kernel limit, disk, clock."""
    outcome = host_pool.run(fleet.each("doctor", box_checks.examine))
    text = console.outcome_text(outcome, {
        "python": console.fact("python"),
        "wheels": lambda r: ", ".join(_words(r, "wheels")),
        "memory": console.size("memory_bytes"),
        "limit": console.fact("fence"),
        "disk": console.size("free_disk_bytes"),
        "clock": lambda r: f"{r.facts.get('clock_skew_seconds', '-')} s",
    })  # fmt: skip
    for result in outcome.results:
        text += "".join(f"\n{result.host}: {line}" for line in _words(result, "problems"))
    error = outcome.error()
    return Answer(outcome.to_dict(), text, exit_code=error.exit_code if error else 0)


def _words(result: HostResult, name: str) -> list[str]:
    found = result.facts.get(name)
    return [str(word) for word in found] if isinstance(found, list) else []


@app.command("install")
@gathered(fleet=open_fleet)
def install_command(
    fleet: host_pool.HostPool,
    wheelhouse: Annotated[
        Path | None, typer.Option("--wheelhouse", help="Folder of wheels, pushed over first.")
    ] = None,
    online: Annotated[
        bool, typer.Option("--online", help="With a wheelhouse: take the rest from a registry.")
    ] = False,
    extras: Annotated[str, typer.Option("--extras", help="Such as ort-training.")] = "",
    patience: Patience = 600.0,
    as_json: common.Json = False,
) -> Answer:
    """Install edgeladder on the boxes, from a registry or a wheelhouse."""
    wheels = install.wheelhouse(wheelhouse) if wheelhouse else None
    work = {
        host.name: install.install_job(host, wheels=wheels, offline=not online, extras=extras)
        for host in fleet.hosts
    }
    with console.Watch() as watch:
        waiting = Waiting(2.0, patience, watch=watch)
        outcome = host_pool.run(install.install(fleet, work, wheels, waiting))
    return answer(outcome, {"attempts": console.fact("attempts")})


@app.command("push")
@gathered(fleet=open_fleet)
def push_command(
    fleet: host_pool.HostPool,
    bundle: common.Bundle = common.BUNDLE,
    data: Annotated[
        Path | None, typer.Option("--data", help="Push this folder of pictures too.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash what is on the boxes again, mend damage.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Afterwards remove what is no longer in use.")
    ] = False,
    as_json: common.Json = False,
) -> Answer:
    """Push the bundle: what is missing, verified, switched at once."""
    fleet.note = console.told
    trees = [push.bundle_tree(bundle)] + ([push.tree_of("data", data)] if data else [])
    outcome = host_pool.run(fleet.each("push", lambda box: push.push_all(
        box, trees, verify=verify, prune=prune)))  # fmt: skip
    columns = {name: console.size(f"{name}_bytes") for name in ("sent", "resumed", "kept")}
    return answer(outcome, {**columns, "tries": lambda result: result.tries})


for module in (fleet_job_commands, fleet_round_commands):
    module.register(app)
