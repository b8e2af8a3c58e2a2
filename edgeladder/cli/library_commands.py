"""`edgeladder devices` and `edgeladder profiles`: list, show and validate the YAML library."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from edgeladder.cli import options
from edgeladder.cli.output import Answer, table
from edgeladder.core.records import to_json

Name = Annotated[str, typer.Argument(help="A shipped name, or a YAML file of yours.")]
Names = Annotated[list[str] | None, typer.Argument(help="Names or YAML files. [all shipped]")]


def register(app: typer.Typer) -> None:
    """Add the two groups of commands to the application."""
    for kind, summary in (
        ("devices", "Facts about device kinds: list, show, validate."),
        ("profiles", "Training recipes: list, show, validate."),
    ):
        app.add_typer(_group(kind), name=kind, help=summary)


def _group(kind: Any) -> typer.Typer:
    group = typer.Typer(rich_markup_mode=None)

    @group.callback(invoke_without_command=True)
    def default(context: typer.Context, as_json: options.Json = False) -> Answer | None:
        return listing(kind) if context.invoked_subcommand is None else None

    @group.command("list", help=f"All shipped {kind}.")
    def list_all(as_json: options.Json = False) -> Answer:
        return listing(kind)

    @group.command("show", help=f"Every value of one of the {kind}, defaults included.")
    def show(name: Name, as_json: options.Json = False) -> Answer:
        return showing(kind, name)

    @group.command("validate", help=f"Check {kind}: unknown keys, types, ranges.")
    def validate(names: Names = None, as_json: options.Json = False) -> Answer:
        return validating(kind, names)

    return group


def _load(kind: str, name: str) -> Any:
    from edgeladder.core import yaml_config

    return yaml_config.load_device(name) if kind == "devices" else yaml_config.load_profile(name)


def listing(kind: Any) -> Answer:
    """The shipped names with their summaries."""
    from edgeladder.core.yaml_config import library

    items = [{"name": name, "summary": _load(kind, name).summary} for name in library(kind)]
    rows = [[item["name"], item["summary"]] for item in items]
    return Answer({kind: items}, lambda: table(["name", "summary"], rows))


def showing(kind: str, name: str) -> Answer:
    """One entry with every key."""
    import json

    values = to_json(_load(kind, name))
    return Answer(values, lambda: json.dumps(values, indent=2, ensure_ascii=False))


def validating(kind: Any, names: list[str] | None) -> Answer:
    """Load every entry named; the first that is wrong raises, with all its errors."""
    from edgeladder.core.yaml_config import library

    chosen = names or list(library(kind))
    for name in chosen:
        _load(kind, name)
    return Answer({"valid": chosen}, f"{len(chosen)} valid: {', '.join(chosen)}")
