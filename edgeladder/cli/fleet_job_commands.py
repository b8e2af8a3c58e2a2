"""`edgeladder fleet` train, status, logs, stop, pull: jobs on the boxes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from edgeladder.cli import options as common
from edgeladder.cli.fleet_options import OUT, Job, JobId, Out, Patience, Poll, answer, open_fleet
from edgeladder.cli.gathered import gathered
from edgeladder.cli.output import Answer
from edgeladder.core.bundle import Bundle
from edgeladder.fleet import console, crew, pull, remote_jobs
from edgeladder.fleet.remote_jobs import Progress, TrainOptions


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
        Bundle.open(bundle, verify=False).digest,
        profile=profile,
        shots=shots,
        seed=seed,
        engine=None if engine == "auto" else engine,
        overrides=tuple(settings or ()),
    )


@gathered(fleet=open_fleet, options=train_options)
def train(
    fleet: crew.Crew,
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
    name = remote_jobs.require_job(job, options)
    work = {host.name: remote_jobs.train_job(host, options, name) for host in fleet.hosts}
    begin = remote_jobs.start_again if again else remote_jobs.start
    if again and wait:
        crew.run(fleet.each("train", lambda box: begin(box, work[box.host.name])))
    if wait:
        with console.Watch() as watch:
            account = crew.run(
                remote_jobs.wait(
                    fleet, work, poll_seconds=poll, patience_seconds=patience, watch=watch
                )
            )
    else:
        account = crew.run(fleet.each("train", lambda box: begin(box, work[box.host.name])))
        account.facts["job"] = name
    columns = ("job", "job_state", "attempts")
    return answer(account, {column: console.fact(column) for column in columns})


@gathered(fleet=open_fleet)
def status(
    job: JobId,
    fleet: crew.Crew,
    as_json: common.Json = False,
) -> Answer:
    """How a job goes on every box."""
    account = crew.run(remote_jobs.look(fleet, job, {}))
    return answer(
        account,
        {
            "job": console.fact("job_state"),
            "attempts": console.fact("attempts"),
            "step": lambda result: result.facts.get("latest", {}).get("step"),
            "loss": lambda result: result.facts.get("latest", {}).get("loss"),
        },
    )


@gathered(fleet=open_fleet)
def logs(
    job: JobId,
    fleet: crew.Crew,
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
        account = crew.run(
            _follow(fleet, job, name, follow, poll, watch if table else _print_lines)
        )
    return answer(account, {"job": console.fact("job_state")})


async def _follow(
    fleet: crew.Crew, job: str, name: str, follow: bool, poll: float, show: Any
) -> Any:
    known: dict[str, Progress] = {}
    while True:
        account = await remote_jobs.look(fleet, job, known, follow=name)
        show(known)
        more = any(progress.lines for progress in known.values())
        alive = any(p.state in ("running", "unreachable") for p in known.values())
        if not more and not (follow and alive):
            return account
        if not more:
            await asyncio.sleep(poll)


def _print_lines(known: dict[str, Progress]) -> None:
    for progress in known.values():
        for line in progress.lines:
            print(f"{progress.host}: {console.clean(line)}")


@gathered(fleet=open_fleet)
def stop(
    job: JobId,
    fleet: crew.Crew,
    grace: Annotated[
        float, typer.Option("--grace", help="Seconds for a checkpoint before it is killed.")
    ] = 30.0,
    as_json: common.Json = False,
) -> Answer:
    """Stop a job; its checkpoint stays, and the same start goes on."""
    account = crew.run(
        fleet.each("stop", lambda box: remote_jobs.stop(box, job, grace_seconds=grace))
    )
    return answer(account, {"job": console.fact("job_state"), "killed": console.fact("killed")})


@gathered(fleet=open_fleet)
def pull_command(
    job: JobId,
    fleet: crew.Crew,
    bundle: common.Bundle = common.BUNDLE,
    out: Out = OUT,
    as_json: common.Json = False,
) -> Answer:
    """Collect adapters, metrics and reports of a job, verified; never pictures."""
    fleet.note = console.told
    manifest = Bundle.open(bundle, verify=False).manifest
    pull.require_own_folders(out, job, [host.name for host in fleet.hosts])
    account = crew.run(fleet.each("pull", lambda box: pull.pull(box, job, out, manifest=manifest)))
    pull.remember_failures(out, job, account)
    account.facts["out"] = str(out / job)
    columns = ("job_state", "files", "kept_there")
    return answer(account, {column: console.fact(column) for column in columns})
