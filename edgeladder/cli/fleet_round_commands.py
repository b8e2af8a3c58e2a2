"""`edgeladder fleet` aggregate, rounds, evaluate, report: many adapters become one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgeladder.cli import options as common
from edgeladder.cli.fleet_job_commands import train_options
from edgeladder.cli.fleet_options import OUT, JobId, Out, Patience, Poll, answer, open_fleet
from edgeladder.cli.gathered import gathered
from edgeladder.cli.output import Answer
from edgeladder.core.bundle import Bundle
from edgeladder.core.records import to_json
from edgeladder.fleet import console, fleet_evaluation, fleet_page, host_pool, rounds
from edgeladder.fleet.averaging import Averaging
from edgeladder.fleet.box.records import TrainOptions
from edgeladder.fleet.remote_jobs import Waiting
from edgeladder.fleet.rounds import RoundOptions

Method = Annotated[
    Literal["mean", "trimmed", "median"],
    typer.Option("--method", help="mean weighs by pictures; the others withstand bad boxes."),
]
Trim = Annotated[float, typer.Option("--trim", help="Share dropped at each end, for trimmed.")]
Bound = Annotated[
    float, typer.Option("--bound", help="Refuse an adapter this many times the median distance.")
]
Start = Annotated[
    Path | None, typer.Option("--start", help="What the boxes began from. [the bundle's]")
]
AverageFolder = Annotated[Path, typer.Option("--adapter", help="Folder of the adapter.")]


def averaging(method: Method = "mean", trim: Trim = 0.2, bound: Bound = 10.0) -> Averaging:
    """How a command line wants adapters averaged."""
    return Averaging(method, trim, bound)


def which_rounds(
    count: Annotated[int, typer.Argument(min=1, help="How many rounds.")],
    name: Annotated[str, typer.Option("--name", help="Of the rounds: their jobs are NAME-r1...")],
    out: Out = OUT,
    quorum: Annotated[
        float, typer.Option("--quorum", min=0, max=1, help="Share of boxes a round needs.")
    ] = 0.5,
    poll: Poll = 5.0,
    patience: Patience = 600.0,
) -> RoundOptions:
    """The rounds that a command line asks for."""
    waiting = Waiting(poll, patience)
    return RoundOptions(name, count, out, quorum=quorum, waiting=waiting, say=console.say)


def register(app: typer.Typer) -> None:
    """Add the commands to the fleet's application."""
    app.command("aggregate")(aggregate)
    app.command("rounds")(rounds_command)
    app.command("evaluate")(evaluate_command)
    app.command("report")(report_command)


@gathered(fleet=open_fleet, averaging=averaging)
def aggregate(
    job: JobId,
    fleet: host_pool.HostPool,
    averaging: Averaging,
    bundle: common.Bundle = common.BUNDLE,
    out: Out = OUT,
    start: Start = None,
    as_json: common.Json = False,
) -> Answer:
    """Average a job's pulled adapters into one."""
    names = [host.name for host in fleet.hosts]
    opened = Bundle.open(bundle, verify=False)
    origin = start / "adapter.safetensors" if start is not None and start.is_dir() else start
    outcome = rounds.aggregate_job(out, job, names, opened, averaging, start=origin)
    rounds.sign_average(rounds.average_folder(out, job), fleet.signing_key)
    columns = ("weight", "distance")
    return answer(outcome, {column: console.fact(column) for column in columns})


@gathered(fleet=open_fleet, training=train_options, averaging=averaging, options=which_rounds)
def rounds_command(
    options: RoundOptions,
    fleet: host_pool.HostPool,
    training: TrainOptions,
    averaging: Averaging,
    bundle: common.Bundle = common.BUNDLE,
    as_json: common.Json = False,
) -> Answer:
    """Repeat push, train, pull and aggregate; pictures never leave a box."""
    with console.Watch() as watch:
        waiting = dataclasses.replace(options.waiting, watch=watch)
        asked = dataclasses.replace(options, averaging=averaging, waiting=waiting)
        outcome = host_pool.run(rounds.rounds(fleet, Bundle.open(bundle), training, asked))
    return answer(outcome, {"weight": console.fact("weight")})


@gathered(fleet=open_fleet)
def evaluate_command(
    adapter: AverageFolder,
    fleet: host_pool.HostPool,
    bundle: common.Bundle = common.BUNDLE,
    out: Out = OUT,
    poll: Poll = 2.0,
    as_json: common.Json = False,
) -> Answer:
    """Push an adapter and evaluate it on every box's own test pictures."""
    with console.Watch() as watch:
        work = fleet_evaluation.evaluate(
            fleet, Bundle.open(bundle), adapter, out, Waiting(poll, watch=watch)
        )
        outcome = host_pool.run(work)
    names = ("accuracy", "zero_shot_accuracy", "count")
    columns = {name: console.fact(name) for name in names}
    return answer(outcome, {**columns, "95 %": console.interval("interval")})


def report_command(
    job: JobId,
    out: Out = OUT,
    page: Annotated[
        Path | None, typer.Option("--page", help="The page. [OUT/JOB/report.html]")
    ] = None,
    as_json: common.Json = False,
) -> Answer:
    """One HTML page for the fleet: accuracy, peaks, failures."""
    written, rows = fleet_page.write(out, job, page)
    return Answer({"report": str(written), "hosts": to_json(rows)}, str(written))
