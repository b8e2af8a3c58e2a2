"""`edgeladder report` and `condense`: what is made from a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeladder.cli import options
from edgeladder.cli.output import Answer


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(report)


def report(
    run: options.Run = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file. [report.html in the run]")
    ] = None,
    as_json: options.Json = False,
) -> Answer:
    """Write the run as one self-contained HTML page."""
    from edgeladder.report import write_report

    path = write_report(options.newest_run(run), out)
    return Answer({"report": str(path)}, str(path))
