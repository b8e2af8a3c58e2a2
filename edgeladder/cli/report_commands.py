"""`edgeladder report` and `condense`: what is made from a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeladder.cli import options
from edgeladder.cli.output import Answer
from edgeladder.cli.progress import Progress
from edgeladder.core.records import to_json

if TYPE_CHECKING:  # records of a training cost every command start-up time
    from edgeladder.core.result import RunResult


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(report)
    app.command()(condense)


def report(
    run: options.Run = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file. [report.html in the run]")
    ] = None,
    no_pictures: options.NoPictures = False,
    as_json: options.Json = False,
) -> Answer:
    """Write the run as one self-contained HTML page."""
    from edgeladder.report import write_report

    path = write_report(options.newest_run(run), out, pictures=not no_pictures)
    return Answer({"report": str(path)}, str(path))


def condense(
    run: options.Run = None,
    keep: Annotated[
        float, typer.Option("--keep", help="Share of the prompts that stays, over all rungs.")
    ] = 0.3,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run directory to make. [RUN-condensed]")
    ] = None,
    device: options.Device = None,
    budget: options.Budget = None,
    settings: options.Settings = None,
    as_json: options.Json = False,
) -> Answer:
    """Keep a run's most important prompts and fine-tune them."""
    from edgeladder.cli.train_commands import trained
    from edgeladder.core.request import TrainRequest
    from edgeladder.jobs import supervisor

    source = options.newest_run(run)
    target = out or source.with_name(f"{source.name}-condensed")
    given = options.optional(device=device, budget_bytes=options.budget_bytes(budget))
    request = TrainRequest(
        condense=str(source),
        run=str(target),
        overrides=[f"ladder.prompts.keep={keep}", *(settings or ())],
        **given,
    )
    with Progress() as progress:
        result = supervisor.train(request, progress, progress.evidence)
    from edgeladder.report import write_report  # only now: what it imports counts as well

    page = write_report(Path(result.run))
    return Answer(
        {**to_json(result), "report": str(page)},
        lambda: f"{_kept(result)}\n{trained(result, page)}",
    )


def _kept(result: RunResult) -> str:
    stored = result.prompts
    if stored is None:
        return "all prompts stay"
    whole = stored.rungs * stored.prompts_per_rung
    return f"{stored.kept} of {whole} prompts stay, {stored.bytes} bytes"
