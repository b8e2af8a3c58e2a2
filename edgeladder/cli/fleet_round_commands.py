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
from edgeladder.fleet import (
    console,
    crew,
    fleet_page,
    rounds,
)
from edgeladder.fleet import (
    fleet_evaluation as evaluate,
)
from edgeladder.fleet.remote_jobs import TrainOptions
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


def averaging(method: Method = "mean", trim: Trim = 0.2, bound: Bound = 10.0) -> RoundOptions:
    """How a command line wants adapters averaged."""
    return RoundOptions(method, trim, bound)


def register(app: typer.Typer) -> None:
    """Add the commands to the fleet's application."""
    app.command("aggregate")(aggregate)
    app.command("rounds")(rounds_command)
    app.command("evaluate")(evaluate_command)
    app.command("report")(report_command)


@gathered(fleet=open_fleet, averaging=averaging)
def aggregate(
    job: JobId,
    fleet: crew.Crew,
    averaging: RoundOptions,
    bundle: common.Bundle = common.BUNDLE,
    out: Out = OUT,
    start: Start = None,
    as_json: common.Json = False,
) -> Answer:
    """Average a job's pulled adapters into one."""
    names = [host.name for host in fleet.hosts]
    opened = Bundle.open(bundle, verify=False)
    origin = start / "adapter.safetensors" if start is not None and start.is_dir() else start
    account = rounds.aggregate_job(out, job, names, averaging, opened, start=origin)
    columns = ("weight", "distance")
    return answer(account, {column: console.fact(column) for column in columns})


@gathered(fleet=open_fleet, training=train_options, averaging=averaging)
def rounds_command(
    count: Annotated[int, typer.Argument(min=1, help="How many rounds.")],
    name: Annotated[str, typer.Option("--name", help="Of the rounds: their jobs are NAME-r1...")],
    fleet: crew.Crew,
    training: TrainOptions,
    averaging: RoundOptions,
    bundle: common.Bundle = common.BUNDLE,
    out: Out = OUT,
    quorum: Annotated[
        float, typer.Option("--quorum", min=0, max=1, help="Share of boxes a round needs.")
    ] = 0.5,
    poll: Poll = 5.0,
    patience: Patience = 600.0,
    as_json: common.Json = False,
) -> Answer:
    """Repeat push, train, pull and aggregate; pictures never leave a box."""
    options = dataclasses.replace(
        averaging, quorum=quorum, poll_seconds=poll, patience_seconds=patience
    )
    with console.Watch() as watch:
        account = crew.run(
            rounds.rounds(
                fleet, Bundle.open(bundle), training, name=name, count=count, out=out,
                options=options, watch=watch, say=console.say,
            )
        )  # fmt: skip
    return answer(account, {"weight": console.fact("weight")})


@gathered(fleet=open_fleet)
def evaluate_command(
    adapter: AverageFolder,
    fleet: crew.Crew,
    bundle: common.Bundle = common.BUNDLE,
    out: Out = OUT,
    poll: Poll = 2.0,
    as_json: common.Json = False,
) -> Answer:
    """Push an adapter and evaluate it on every box's own test pictures."""
    with console.Watch() as watch:
        account = crew.run(
            evaluate.evaluate(
                fleet, Bundle.open(bundle), adapter, out, poll_seconds=poll, watch=watch
            )
        )
    columns = ("accuracy", "zero_shot_accuracy", "count")
    return answer(account, {column: console.fact(column) for column in columns})


def report_command(
    job: JobId,
    out: Out = OUT,
    page: Annotated[
        Path | None, typer.Option("--page", help="The page. [OUT/JOB/fleet_page.html]")
    ] = None,
    as_json: common.Json = False,
) -> Answer:
    """One HTML page for the fleet: accuracy, peaks, failures."""
    written, rows = fleet_page.write(out, job, page)
    return Answer({"report": str(written), "hosts": rows}, str(written))
