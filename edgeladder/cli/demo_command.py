"""`edgeladder demo`: the embedded nano model on embedded pictures, start to end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeladder.cli import options
from edgeladder.cli.output import Answer
from edgeladder.cli.progress import Progress


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(demo)


def demo(
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the run. [runs/demo-<stamp>]")
    ] = None,
    budget: options.Budget = None,
    as_json: options.Json = False,
) -> Answer:
    """Tune the embedded nano model on embedded pictures."""
    from edgeladder.demo import run_demo

    with Progress() as progress:
        values, text = run_demo(
            out=out, budget_bytes=options.budget_bytes(budget), progress=progress
        )
    return Answer(values, text)
