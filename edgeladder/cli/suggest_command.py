"""`edgeladder suggest`: which pictures to label next, and what a person sorted taken in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edgeladder.cli import options
from edgeladder.cli.output import Answer, table
from edgeladder.cli.reviewing import looked_through, require_page, values_of
from edgeladder.core.errors import ConfigError

if TYPE_CHECKING:
    from edgeladder.core.suggestion import Suggestions

_SHOWN = 40


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command()(suggest)


def suggest(
    count: Annotated[int, typer.Argument(min=1, help="Pictures to label next.")] = 20,
    unlabelled: options.Unlabelled = None,
    bundle: options.Bundle = options.BUNDLE,
    data: options.Data = options.DATA,
    cache: options.Cache = options.CACHE,
    run: options.Served = None,
    covering: Annotated[
        bool, typer.Option("--covering", help="Ask no run: pictures that stand for many.")
    ] = False,
    page: options.Page = None,
    pictures: options.Thumbnails = True,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder of links to make, to sort into classes.")
    ] = None,
    take: Annotated[
        Path | None, typer.Option("--take", help="Make what was sorted in FOLDER labelled.")
    ] = None,
    device: options.Device = None,
    budget: options.Budget = None,
    as_json: options.Json = False,
) -> Answer:
    """Which of the unlabelled pictures a person should label next.

    A person moves the links into class folders; --take makes them labelled pictures.

    Example: edgeladder suggest 20 --out to-label; edgeladder suggest --take to-label
    """
    if take is not None:
        return _taken(take, data)
    from edgeladder.core.inference import InferenceRequest
    from edgeladder.core.sorting import require_sortable

    named, waiting = options.shipped_or(bundle), unlabelled or data / "unlabelled"
    options.require(bundle=named)
    _require_waiting(waiting)
    require_page(page)
    if out is not None:
        require_sortable(out)
    asked = None if covering else _run(run)
    request = InferenceRequest(
        command="suggest",
        run=str(asked) if asked is not None else "",
        bundle=str(named),
        data=str(data),
        cache=str(cache),
        paths=[str(waiting)],
        top=count,
        thumbnails=page is not None and pictures,
        device=device,
        budget_bytes=options.budget_bytes(budget),
    )
    answer, memory = looked_through(request)
    found = cast("Suggestions", answer)
    values = values_of(found, _written(found, page, out, pictures=pictures), memory)
    return Answer(values, lambda: _suggested(values))


def _require_waiting(folder: Path) -> None:
    if not folder.exists():
        raise ConfigError(
            f"no unlabelled pictures at {folder}",
            remedy="put them there, or name a folder or .zip with --unlabelled",
        )


def _run(run: Path | None) -> Path | None:
    """The run named, pinned or newest; None where there is none yet."""
    if run is None and not any(options.RUNS.glob("*/adapter.json")):
        return None
    return options.served_run(run)


def _written(
    found: Suggestions, page: Path | None, out: Path | None, *, pictures: bool
) -> dict[str, str]:
    written: dict[str, str] = {}
    if page is not None:
        from edgeladder.report.suggestion_page import write_suggestions

        written["page"] = str(write_suggestions(page, found, pictures=pictures))
    if out is not None:
        from edgeladder.core.sorting import lay_out
        from edgeladder.runtime.prediction import picture_bytes

        lay_out(out, [item.path for item in found.pictures], found.classes, picture_bytes)
        written["folder"] = str(out)
    return written


def _taken(folder: Path, data: Path) -> Answer:
    """Sorted pictures become labelled ones: moved, journalled, taken back by `check --undo`."""
    from edgeladder.core import disk
    from edgeladder.core.files import storage_errors
    from edgeladder.core.moves import finish, move_pictures
    from edgeladder.core.sorting import sorted_pictures
    from edgeladder.runtime.pictures.dataset import data_root

    with storage_errors(data):
        disk.make_folders(data)
    root = data_root(data)
    finished = finish(root)
    wanted, links = sorted_pictures(folder, root)
    moves = [*finished, *move_pictures(root, wanted)]
    for link in links:
        disk.unlink(link)
    values = {"taken": [{"from": move.source, "to": move.target} for move in moves]}
    noun = "picture" if len(moves) == 1 else "pictures"
    return Answer(
        values,
        f"{len(moves)} {noun} labelled; `edgeladder check --undo` takes it back, "
        "`edgeladder train` learns from them",
    )


def _suggested(values: dict[str, Any]) -> str:
    rows = [
        [
            item["path"],
            "not sure" if item["reason"] == "uncertain" else "covers",
            item["stands_for"],
            f"{item['guess']} {100 * item['probability']:.0f} %" if item["guess"] else None,
        ]
        for item in values["pictures"][:_SHOWN]
    ]
    lines = [table(["picture", "because", "stands for", "the run's guess"], rows)]
    if len(values["pictures"]) > _SHOWN:
        lines.append(f".. and {len(values['pictures']) - _SHOWN} more")
    lines.append(
        f"of {values['unlabelled']} without a label ({values['new']} new, {values['reused']} "
        f"pictures from the cache), beside {values['labelled']} with one"
    )
    if values["known"]:
        lines.append(f"{values['known']} have a label already: their bytes are in the data")
    lines += [f"{name}: {values[name]}" for name in ("page", "folder") if name in values]
    if "folder" in values:
        lines.append(f"sort, then: edgeladder suggest --take {values['folder']}")
    return "\n".join(lines)
