"""`edgeladder fleet` train, status, logs, stop, pull: jobs on the boxes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Annotated

import typer

from edgeladder.cli import options as common
from edgeladder.cli.fleet_options import OUT, Job, JobId, Out, Patience, Poll, answer, open_fleet
from edgeladder.cli.gathered import gathered
from edgeladder.cli.output import Answer
from edgeladder.core.bundle import Bundle
from edgeladder.fleet import console, host_pool, pull, pulled, push, remote_jobs
from edgeladder.fleet.box.records import TrainOptions
from edgeladder.fleet.outcomes import FleetOutcome, HostResult
from edgeladder.fleet.remote_jobs import Progress, Waiting

_MOST_LOOKS = 1000  # at a file without --follow: 250 MB of it


def register(app: typer.Typer) -> None:
    """Add the commands to the fleet's application."""
    app.command("train")(train)
    app.command("status")(status)
    app.command("logs")(logs)
    app.command("stop")(stop)
    app.command("pull")(pull_command)


def train_options(
    bundle: common.Bundle = common.BUNDLE,
    profile: common.Profile = None,
    shots: common.Shots = None,
    seed: common.Seed = None,
    engine: common.Engine = "auto",
    settings: common.Settings = None,
) -> TrainOptions:
    """What a command line tells every box's training."""
    return TrainOptions(
        push.bundle_address(Bundle.open(bundle, verify=False)),
        profile=profile,
        shots=shots,
        seed=seed,
        engine=None if engine == "auto" else engine,
        overrides=tuple(settings or ()),
    )


@gathered(fleet=open_fleet, options=train_options)
def train(
    fleet: host_pool.HostPool,
    options: TrainOptions,
    job: Job = None,
    again: Annotated[
        bool, typer.Option("--again", help="Train afresh where the job is done already.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Watch until all have ended.")] = False,
    poll: Poll = 5.0,
    patience: Patience = 600.0,
    as_json: common.Json = False,
) -> Answer:
    """Start training on the boxes: detached, once per job id."""
    name = job or remote_jobs.train_id(options)
    work = {host.name: remote_jobs.train_job(host, options, name) for host in fleet.hosts}
    begin = remote_jobs.start_again if again else remote_jobs.start
    if again and wait:
        host_pool.run(fleet.each("train", lambda box: begin(box, work[box.host.name])))
    if wait:
        with console.Watch() as watch:
            waiting = Waiting(poll, patience, watch=watch)
            outcome = host_pool.run(remote_jobs.wait(fleet, work, waiting))
    else:
        outcome = host_pool.run(fleet.each("train", lambda box: begin(box, work[box.host.name])))
        outcome.facts["job"] = name
    columns = ("job", "job_state", "attempts")
    return answer(outcome, {column: console.fact(column) for column in columns})


@gathered(fleet=open_fleet)
def status(
    job: JobId,
    fleet: host_pool.HostPool,
    as_json: common.Json = False,
) -> Answer:
    """How a job goes on every box."""
    outcome = host_pool.run(remote_jobs.look(fleet, job, {}))
    return answer(
        outcome,
        {
            "job": console.fact("job_state"),
            "attempts": console.fact("attempts"),
            "step": _latest("step"),
            "loss": _latest("loss"),
        },
    )


def _latest(name: str) -> Callable[[HostResult], object]:
    """A column of a job's newest metrics."""

    def show(result: HostResult) -> object:
        latest = result.facts.get("latest")
        return latest.get(name) if isinstance(latest, dict) else None

    return show


@gathered(fleet=open_fleet)
def logs(
    job: JobId,
    fleet: host_pool.HostPool,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until all have ended.")] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="metrics.jsonl instead of the log.")
    ] = False,
    poll: Poll = 2.0,
    as_json: common.Json = False,
) -> Answer:
    """A job's log lines, or with -f one live table of its metrics."""
    table = follow and not metrics
    name = "run/metrics.jsonl" if metrics or follow else "log"
    with console.Watch() as watch:
        outcome = host_pool.run(
            _follow(fleet, job, name, follow, poll, watch if table else _print_lines)
        )
    return answer(outcome, {"job": console.fact("job_state")})


async def _follow(
    fleet: host_pool.HostPool,
    job: str,
    name: str,
    follow: bool,
    poll: float,
    show: Callable[[dict[str, Progress]], None],
) -> FleetOutcome:
    """Show a job's file as it grows: once, or with `follow` until all have ended."""
    known: dict[str, Progress] = {}
    looks = itertools.count() if follow else range(_MOST_LOOKS)  # a log that never ends is one
    for _ in looks:
        outcome = await remote_jobs.look(fleet, job, known, follow=name)
        show(known)
        more = any(progress.lines for progress in known.values())
        alive = any(p.state in ("running", "unreachable") for p in known.values())
        if not more and not (follow and alive):
            return outcome
        if not more:
            await asyncio.sleep(poll)
    return outcome


def _print_lines(known: dict[str, Progress]) -> None:
    for progress in known.values():
        for line in progress.lines:
            print(f"{progress.host}: {console.clean(line)}")


@gathered(fleet=open_fleet)
def stop(
    job: JobId,
    fleet: host_pool.HostPool,
    grace: Annotated[
        float, typer.Option("--grace", help="Seconds for a checkpoint before it is killed.")
    ] = 30.0,
    as_json: common.Json = False,
) -> Answer:
    """Stop a job; its checkpoint stays, and the same start goes on."""
    outcome = host_pool.run(
        fleet.each("stop", lambda box: remote_jobs.stop(box, job, grace_seconds=grace))
    )
    return answer(outcome, {"job": console.fact("job_state"), "killed": console.fact("killed")})


@gathered(fleet=open_fleet)
def pull_command(
    job: JobId,
    fleet: host_pool.HostPool,
    bundle: common.Bundle = common.BUNDLE,
    out: Out = OUT,
    as_json: common.Json = False,
) -> Answer:
    """Collect adapters, metrics and reports of a job, verified; never pictures."""
    fleet.note = console.told
    manifest = Bundle.open(bundle, verify=False).manifest
    pulled.require_own_folders(out, job, [host.name for host in fleet.hosts])
    outcome = host_pool.run(
        fleet.each("pull", lambda box: pull.pull(box, job, out, manifest=manifest))
    )
    pulled.remember_failures(out, job, outcome)
    outcome.facts["out"] = str(out / job)
    columns = ("job_state", "files", "kept_there")
    return answer(outcome, {column: console.fact(column) for column in columns})
