"""`edgeladder devices` and `edgeladder profiles`: list, show and validate the YAML library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeladder.cli import options
from edgeladder.cli.command import App
from edgeladder.cli.output import Answer, table
from edgeladder.cli.probe import probe
from edgeladder.core.records import to_json

if TYPE_CHECKING:
    from edgeladder.core.config import Profile

Fits = Annotated[
    Path | None, typer.Option("--bundle", help="Say which fit this bundle (nano: what ships).")
]
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
    group = App(rich_markup_mode=None)
    if kind == "profiles":
        _list_profiles(group)
    else:
        _list_plainly(group, kind)
        group.command("probe")(probe)

    @group.command("show", help=f"Every value of one of the {kind}, defaults included.")
    def show(name: Name, as_json: options.Json = False) -> Answer:
        return showing(kind, name)

    @group.command("validate", help=f"Check {kind}: unknown keys, types, ranges.")
    def validate(names: Names = None, as_json: options.Json = False) -> Answer:
        return validating(kind, names)

    return group


def _list_plainly(group: typer.Typer, kind: Any) -> None:
    @group.callback(invoke_without_command=True)
    def default(context: typer.Context, as_json: options.Json = False) -> Answer | None:
        return listing(kind) if context.invoked_subcommand is None else None

    @group.command("list", help=f"All shipped {kind}.")
    def list_all(as_json: options.Json = False) -> Answer:
        return listing(kind)


def _list_profiles(group: typer.Typer) -> None:
    @group.callback(invoke_without_command=True)
    def default(
        context: typer.Context, bundle: Fits = None, as_json: options.Json = False
    ) -> Answer | None:
        return listing("profiles", bundle) if context.invoked_subcommand is None else None

    @group.command("list", help="All shipped profiles, and which of them fit a bundle.")
    def list_all(bundle: Fits = None, as_json: options.Json = False) -> Answer:
        return listing("profiles", bundle)


def _load(kind: str, name: str) -> Any:
    from edgeladder.core import yaml_config

    return yaml_config.load_device(name) if kind == "devices" else yaml_config.load_profile(name)


def listing(kind: Any, bundle: Path | None = None) -> Answer:
    """The shipped names with their summaries; with a bundle, whether each can be trained on it."""
    from edgeladder.core.yaml_config import library, says_ladder

    exported = None if bundle is None else _exported(bundle)
    items, rows = [], []
    for name in library(kind):
        loaded = _load(kind, name)
        item = {"name": name, "summary": loaded.summary}
        if exported is not None:
            from edgeladder.core.profile_fit import fitted, misfit

            taken = fitted(loaded, exported, any_ladder=not says_ladder(name))
            found = misfit(taken, exported, name)
            item |= {"fits": found is None, "reason": found.reason if found else None}
        items.append(item)
        fits = [] if exported is None else ["yes" if item["fits"] else "no"]
        rows.append([name, *fits, item["summary"]])
    header = ["name", *([] if exported is None else ["fits"]), "summary"]
    return Answer({kind: items}, lambda: table(header, rows))


def _exported(bundle: Path) -> Profile:
    """The profile that a bundle was exported with."""
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.shipped import named_bundle

    found = named_bundle(bundle)
    options.require(bundle=found)
    return Bundle.open(found, verify=False).manifest.profile


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
