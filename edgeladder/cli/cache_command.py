"""`edgeladder cache`: how large it is, and what of it can go."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeladder.cli import options
from edgeladder.cli.command import App
from edgeladder.cli.output import Answer, table
from edgeladder.cli.run_commands import age
from edgeladder.core.config import MOST_VIEWS
from edgeladder.core.records import to_json
from edgeladder.core.sizes import format_size, parse_size

if TYPE_CHECKING:
    from edgeladder.runtime.cache.prune import Removal

Limit = Annotated[
    str | None,
    typer.Option("--limit", metavar="SIZE", help="Let no more than this stay: 2GB. Oldest go."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = App(rich_markup_mode=None)
    group.callback(invoke_without_command=True)(cache)
    group.command("prune")(prune)
    app.add_typer(group, name="cache", help="Cached activations: size, limit, prune.")


def cache(
    context: typer.Context,
    folder: options.Cache = options.CACHE,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: options.Json = False,
) -> Answer | None:
    """List what is cached, and with --limit let the oldest of it go.

    Example: edgeladder cache; edgeladder cache --limit 2GB
    """
    if context.invoked_subcommand is not None:
        return None
    _require(folder)
    from edgeladder.runtime.cache import prune as pruning

    if limit is not None:
        found = pruning.prune(folder, limit_bytes=parse_size(limit), dry_run=dry_run)
        return _answer(folder, found, dry_run)
    stores = pruning.store_sizes(folder)
    total = sum(item.bytes for item in stores)
    rows = [
        [item.name, format_size(item.bytes), item.shards, age(time.time() - item.written)]
        for item in stores
    ]
    return Answer(
        {"cache": str(folder), "bytes": total, "stores": to_json(stores)},
        lambda: (
            table(["store", "size", "shards", "written"], rows)
            + f"\n{format_size(total)} in {folder}; all of it can be computed again"
        ),
    )


def prune(
    folder: options.Cache = options.CACHE,
    bundle: options.Bundle = options.BUNDLE,
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Pictures that stay cached; repeatable. [data, the runs']"),
    ] = None,
    views: Annotated[
        int, typer.Option("--views", min=0, max=MOST_VIEWS, help="Augmented views that stay.")
    ] = MOST_VIEWS,
    limit: Limit = None,
    dry_run: DryRun = False,
    as_json: options.Json = False,
) -> Answer:
    """Remove what nobody wants: other bundles', pictures that are gone, old views.

    What runs below runs/ use of this cache stays, and what a running job uses is not touched.

    Example: edgeladder cache prune --dry-run
    """
    _require(folder)
    from edgeladder.jobs.cache_wanted import wanted_samples
    from edgeladder.runtime.cache import prune as pruning

    named = options.shipped_or(bundle)
    options.require(bundle=named)
    kept = data if data is not None else [path for path in (options.DATA,) if path.exists()]
    wanted = wanted_samples(folder, [named], kept, options.RUNS, views)
    size = None if limit is None else parse_size(limit)
    return _answer(folder, pruning.prune(folder, wanted, size, dry_run=dry_run), dry_run)


def _require(folder: Path) -> None:
    """Refuse where there is no cache.

    Raises:
        ConfigError: naming what makes one.
    """
    options.require(cache=folder)


def _answer(folder: Path, found: list[Removal], dry_run: bool) -> Answer:
    from edgeladder.runtime.cache.prune import store_sizes

    freed = sum(item.bytes for item in found)
    left = sum(item.bytes for item in store_sizes(folder))
    values = {
        "cache": str(folder),
        "removed": to_json(found),
        "freed_bytes": freed,
        "bytes": left,
        "dry_run": dry_run,
    }
    return Answer(values, lambda: _told(found, freed, left, dry_run))


def _told(found: list[Removal], freed: int, left: int, dry_run: bool) -> str:
    if not found:
        return f"nothing to remove: all {format_size(left)} are wanted"
    reasons = {item.reason: 0 for item in found}
    for item in found:
        reasons[item.reason] += item.bytes
    lines = [f"{format_size(size)} {reason}" for reason, size in reasons.items()]
    said = (
        f"{format_size(freed)} of {format_size(left)} would go; nothing was removed"
        if dry_run
        else f"{format_size(freed)} removed, {format_size(left)} stay"
    )
    return "\n".join([*lines, said])
