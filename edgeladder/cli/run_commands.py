"""`edgeladder runs` and `compare`: which runs there are, which one serves, where two differ."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgeladder.cli import options
from edgeladder.cli.command import App
from edgeladder.cli.output import Answer, table
from edgeladder.cli.progress import Progress
from edgeladder.core.errors import ConfigError
from edgeladder.core.intervals import interval_text
from edgeladder.core.records import to_json
from edgeladder.core.sizes import format_size

Folder = Annotated[Path, typer.Option("--folder", help="Folder of the runs.")]
Named = Annotated[str, typer.Argument(metavar="RUN", help="Name below the folder, or a path.")]

_SHOWN = 40  # pictures of a comparison in the table; --json has all of them
_PART = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    group = App(rich_markup_mode=None)
    group.callback(invoke_without_command=True)(runs)
    for name, command in (("pin", pin), ("unpin", unpin), ("remove", remove)):
        group.command(name)(command)
    app.add_typer(group, name="runs", help="Runs: list with accuracy, memory, age; pin, remove.")
    app.command()(compare)


def runs(
    context: typer.Context, folder: Folder = options.RUNS, as_json: options.Json = False
) -> Answer | None:
    """List runs with accuracy, memory and age, newest first.

    Example: edgeladder runs; edgeladder runs pin 20260301-120000; edgeladder predict new/
    """
    if context.invoked_subcommand is not None:
        return None
    from edgeladder.core.run_list import list_runs

    found = list_runs(folder)
    return Answer({"runs": to_json(found)}, lambda: _listed(to_json(found), folder))


def pin(run: Named, folder: Folder = options.RUNS, as_json: options.Json = False) -> Answer:
    """Let predict, evaluate and deploy use this run where none is named.

    Example: edgeladder runs pin 20260301-120000
    """
    from edgeladder.core.run_list import pin_run

    path = _path(run, folder)
    pin_run(path)
    return Answer({"pinned": str(path)}, f"{path} is pinned: predict uses it without --run")


def unpin(folder: Folder = options.RUNS, as_json: options.Json = False) -> Answer:
    """Let the newest run serve again.

    Example: edgeladder runs unpin
    """
    from edgeladder.core.run_list import unpin as remove_pin

    there = remove_pin(folder)
    return Answer({"unpinned": there}, "the newest run serves" if there else "none was pinned")


def remove(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names or paths.")],
    folder: Folder = options.RUNS,
    as_json: options.Json = False,
) -> Answer:
    """Delete runs: their folders, and nothing that EdgeLadder did not write.

    Example: edgeladder runs remove 20260228-093000
    """
    from edgeladder.core.run_list import removable_bytes, remove_run
    from edgeladder.jobs.run_directory import RunDirectory

    removed, freed = [], 0
    for name in names:
        path = _path(name, folder)
        size = removable_bytes(path)
        locked = RunDirectory(path)
        locked.lock()  # refuses while something trains in it
        try:
            remove_run(path)
        finally:
            locked.unlock()
        removed.append(str(path))
        freed += size
    return Answer(
        {"removed": removed, "freed_bytes": freed},
        f"removed {', '.join(removed)}: {format_size(freed)} are free again",
    )


def compare(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Run: a name below runs/ or a path.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="The run to hold against it.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Pictures. [default: what NEW held out]")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="train, validation, test.")] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Cached activations. [each run's own]")
    ] = None,
    device: options.Device = None,
    budget: options.Budget = None,
    as_json: options.Json = False,
) -> Answer:
    """Two runs on the same pictures: where they differ, picture by picture.

    Example: edgeladder compare 20260228-093000 20260301-120000
    """
    from edgeladder.core.inference import InferenceRequest
    from edgeladder.jobs.comparison import compare as compare_runs

    older, newer = _path(old, options.RUNS), _path(new, options.RUNS)
    request = InferenceRequest(
        command="judge",
        run=str(newer),
        data=_text(data),
        cache=_text(cache),
        split=split,
        device=device,
        budget_bytes=options.budget_bytes(budget),
    )
    with Progress() as progress:
        found, memory = compare_runs(str(older), request, progress)
    values = {**to_json(found), "memory": to_json(memory)}
    return Answer(values, lambda: _compared(values))


def _path(name: str, folder: Path) -> Path:
    """A run by its name below the folder, or by its path.

    Raises:
        ConfigError: neither is there.
    """
    for path in (folder / name, Path(name)):
        if path.is_dir():
            return path
    raise ConfigError(
        f"no run {name!r}", where=str(folder), remedy="`edgeladder runs` lists those there are"
    )


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _listed(found: list[dict[str, Any]], folder: Path) -> str:
    if not found:
        return f"no run below {folder}; `edgeladder train` makes one"
    head = [
        "run",
        "",
        "age",
        "accuracy",
        "95 %",
        "zero-shot",
        "judged on",
        "classes",
        "peak",
        "disk",
    ]
    rows = [
        [
            item["name"],
            "pinned" if item["pinned"] else "" if item["state"] == "finished" else item["state"],
            age(item["age_seconds"]),
            item["accuracy"],
            interval_text(item["accuracy"], item["count"] or 0),
            item["zero_shot_accuracy"],
            f"{item['count']} {item['split']}" if item["count"] is not None else None,
            item["classes"],
            format_size(item["peak_bytes"]) if item["peak_bytes"] else None,
            format_size(item["disk_bytes"]),
        ]
        for item in found
    ]
    return table(head, rows)


def age(seconds: float) -> str:
    """`3 d`, `5 h`: the largest unit of which there is one."""
    for size, unit in _PART:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "now"


def _compared(values: dict[str, Any]) -> str:
    """Both accuracies, then the pictures of which the runs say different things."""
    lines = []
    shown = values["differences"][:_SHOWN]
    if shown:
        rows = [
            [x["path"], x["label"], *(f"{x[s]['label']} {100 * x[s]['probability']:.0f} %"
             for s in ("old", "new")), x["change"]]
            for x in shown
        ]  # fmt: skip
        lines.append(table(["picture", "label", "old", "new", ""], rows))
    if len(values["differences"]) > len(shown):
        lines.append(f".. and {len(values['differences']) - len(shown)} more (--json has all)")
    return "\n".join([*lines, *verdict(values)])


def verdict(values: dict[str, Any]) -> list[str]:
    """A comparison in a few lines: accuracies, what changed, a warning where the old was better."""
    old, new, count = values["old"], values["new"], values["count"]
    lines = []
    if count:
        lines.append(
            f"on {count} pictures that neither was trained on: old {_percent(old)}, "
            f"new {_percent(new)}; {values['mended']} mended, {values['broken']} broken "
            f"(p = {values['p_value']:.2g} were neither better)"
        )
    if values["new_classes"]:
        some = ", ".join(values["only_new"][:5])
        lines.append(
            f"new classes ({some}): {_percent(values['new_classes'])} "
            f"on {values['new_classes_count']} pictures"
        )
    if values["trained_on"]:
        lines.append(f"{values['trained_on']} pictures left out: one of the two has seen them")
    if values["better"] == "old":
        lines.append(
            f"warning: the old run was better; `edgeladder runs pin {Path(old['run']).name}` "
            "keeps it in service"
        )
    return lines


def _percent(side: dict[str, Any]) -> str:
    """`71.7 % (63.1 to 79.0; 86 right)`, the range being the 95 % interval."""
    share = side["accuracy"]
    if share is None:
        return "-"
    return f"{100 * share:.1f} % ({interval_text(share, side['count'])}; {side['correct']} right)"
