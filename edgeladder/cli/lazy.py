"""Sub-commands whose module is imported only when they are called."""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperGroup

# command -> (module with a typer app called `app`, its line in `edgeladder --help`)
LAZY = {
    "fleet": (
        "edgeladder.cli.fleet_commands",
        "Many boxes over SSH: push, train, watch, aggregate.",
    ),
}


class LazyGroup(TyperGroup):
    """A group that knows its lazy members by name and loads one at its first use."""

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """All commands in the order they were registered, the lazy ones after."""
        return [*super().list_commands(ctx), *LAZY]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the help's list of commands without loading the lazy ones."""
        self._listing = True
        try:
            super().format_commands(ctx, formatter)
        finally:
            self._listing = False

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; while the help lists them, a stand-in with a lazy one's line."""
        if cmd_name not in LAZY:
            return super().get_command(ctx, cmd_name)
        module, summary = LAZY[cmd_name]
        if self._listing:
            return typer.core.TyperCommand(cmd_name, help=summary)
        command = typer.main.get_command(importlib.import_module(module).app)
        command.name = cmd_name
        return command
