"""`edgeladder doctor`: what this machine is, what will work, how to fix what won't."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeladder.cli import options
from edgeladder.cli.output import Answer


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(doctor)


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Also verify this bundle and replay its golden steps."),
    ] = None,
    as_json: options.Json = False,
) -> Answer:
    """What this machine is, what works, how to fix the rest."""
    from edgeladder.doctor import examine

    examination = examine(bundle)
    return Answer(examination.to_dict(), examination.text, exit_code=examination.exit_code)
