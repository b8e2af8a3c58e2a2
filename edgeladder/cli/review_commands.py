"""`edgeladder check`: what is wrong with pictures and labels, and a person's decisions applied."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edgeladder.cli import options
from edgeladder.cli.output import Answer, table
from edgeladder.cli.reviewing import looked_through, require_page, values_of
from edgeladder.core.errors import ConfigError

if TYPE_CHECKING:
    from edgeladder.core.review import Review

_SHOWN = 20  # lines of each table; --json and the page have more


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(check)


def check(
    bundle: options.Bundle = options.BUNDLE,
    data: options.Data = options.DATA,
    cache: options.Cache = options.CACHE,
    page: options.Page = None,
    pictures: options.Thumbnails = True,
    decisions: Annotated[
        Path | None, typer.Option("--decisions", help="CSV to write, for a person to fill in.")
    ] = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", help="Apply the decisions of such a CSV, and no others.")
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take back the last --fix.")] = False,
    most: Annotated[int, typer.Option("--most", min=1, help="Suspects to list.")] = 100,
    device: options.Device = None,
    budget: options.Budget = None,
    as_json: options.Json = False,
) -> Answer:
    """Labels that are probably wrong, pictures that are there twice, confused and small classes.

    A person fills in the last column of the decisions; --fix applies them, and no others.

    Example: edgeladder check --decisions wrong.csv; edgeladder check --fix wrong.csv
    """
    if fix is not None or undo:
        if fix is not None and undo:
            raise ConfigError("--fix and --undo together", remedy="use one of them")
        return _moved(data, fix)
    from edgeladder.core.inference import InferenceRequest

    named = options.shipped_or(bundle)
    options.require(bundle=named, pictures=data)
    require_page(page)
    _require_undecided(decisions)
    request = InferenceRequest(
        command="check",
        bundle=str(named),
        data=str(data),
        cache=str(cache),
        listed=most,
        thumbnails=page is not None and pictures,
        device=device,
        budget_bytes=options.budget_bytes(budget),
    )
    answer, memory = looked_through(request)
    found = cast("Review", answer)
    written: dict[str, str] = {}
    if page is not None:
        from edgeladder.report.review_page import write_review

        written["page"] = str(write_review(page, found, pictures=pictures))
    if decisions is not None:
        from edgeladder.core.decisions import write_decisions

        write_decisions(decisions, found)
        written["decisions"] = str(decisions)
    values = values_of(found, written, memory)
    return Answer(values, lambda: _checked(values))


def _require_undecided(decisions: Path | None) -> None:
    """Before pictures are looked through, and not only when the list is written."""
    if decisions is not None:
        from edgeladder.core.decisions import require_undecided

        require_undecided(decisions)


def _moved(data: Path, fix: Path | None) -> Answer:
    """Apply or take back decisions; what a power cut left is finished first."""
    from edgeladder.core.decisions import read_decisions
    from edgeladder.core.moves import finish, move_pictures, undo
    from edgeladder.runtime.pictures.dataset import data_root

    options.require(pictures=data)
    root = data_root(data)
    wanted = read_decisions(fix) if fix is not None else None
    finished = finish(root)
    if wanted is not None and finished:
        left = {move.source for move in finished}
        wanted = [item for item in wanted if item.source not in left]
    moves = undo(root) if wanted is None else [*finished, *move_pictures(root, wanted)]
    ends = [(m.target, m.source) if wanted is None else (m.source, m.target) for m in moves]
    values = {
        "moved": [{"from": source, "to": target} for source, target in ends],
        "undone": wanted is None,
    }
    lines = [f"{source} -> {target}" for source, target in ends[:_SHOWN]]
    after = "taken back" if wanted is None else "moved; `edgeladder check --undo` takes it back"
    noun = "picture" if len(ends) == 1 else "pictures"
    return Answer(values, "\n".join([*lines, f"{len(ends)} {noun} {after}"]))


def _checked(values: dict[str, Any]) -> str:
    parts = [_suspects(values), _duplicates(values)]
    if values["confused"]:
        rows = [
            [" / ".join(item["classes"]), item["count"], item["share"]]
            for item in values["confused"]
        ]
        parts.append(table(["confused classes", "pictures", "share of both"], rows))
    if values["small_classes"]:
        rows = [[item["label"], item["count"]] for item in values["small_classes"]]
        parts.append(table([f"fewer than {values['few']}", "training pictures"], rows))
    parts += [f"{name}: {values[name]}" for name in ("page", "decisions") if name in values]
    parts.append(
        f"{values['count']} pictures of {len(values['classes'])} classes looked through "
        f"({values['new']} new, {values['reused']} from the cache"
        + (f", {len(values['skipped'])} unreadable)" if values["skipped"] else ")")
    )
    return "\n".join(part for part in parts if part)


def _suspects(values: dict[str, Any]) -> str:
    if not values["judged"]:
        return "no label can be judged: there are no two classes with two pictures each"
    if not values["suspects"]:
        return "no label looks wrong"
    rows = [
        [
            item["path"],
            f"{item['label']} {100 * item['probability']:.1f} %",
            f"{item['suggested']} {100 * item['suggested_probability']:.0f} %",
        ]
        for item in values["suspects"][:_SHOWN]
    ]
    text = table(["probably wrong", "label", "rather"], rows)
    more = values["suspected"] - len(rows)
    return text + (f"\n.. and {more} more" if more else "")


def _duplicates(values: dict[str, Any]) -> str:
    groups = values["duplicates"]
    rows = []
    for group in groups[:_SHOWN]:
        for place in group["pictures"][:3]:
            first = group["kind"] if place is group["pictures"][0] else ""
            rows.append([first, place["path"], place["label"], place["split"]])
    text = table(["twice", "picture", "class", "split"], rows) if rows else ""
    if len(groups) > _SHOWN:
        text += f"\n.. and {len(groups) - _SHOWN} more groups"
    if values["repeated"]:
        count = values["repeated"]
        again = f"{count} picture{'s are' if count > 1 else ' is'} there again within "
        again += "their class and split" if count > 1 else "its class and split"
        text = f"{text}\n{again}" if text else again
    return text
