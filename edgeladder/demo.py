"""`edgeladder demo`: the embedded model on the embedded pictures, start to end.

Nothing heavy is imported before the training is over: this process counts inside the budget.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeladder.budget.policy import DEMO_BYTES
from edgeladder.core.errors import IntegrityError
from edgeladder.core.ownership import require_ours
from edgeladder.core.records import to_json
from edgeladder.core.shipped import DEMO_PICTURES, NANO_BUNDLE
from edgeladder.core.sizes import format_size

SHOTS = 16  # pictures per class to learn from
_WHAT = (
    "A frozen dual encoder (nano: EfficientNet-Lite0 and a small text transformer) meets 10 kinds\n"
    "of garment. It first names them from words alone, then a ladder beside it learns from 16\n"
    "pictures of each, here, on this machine, inside a memory budget."
)


def run_demo(
    *,
    out: Path | None = None,
    budget_bytes: int | None = None,
    progress: Callable[..., None] | None = None,
) -> tuple[dict[str, Any], str]:
    """Plan, precompute, train, evaluate and report on what ships with the package.

    Args:
        out: folder of the run; a new one below `runs/` without it. Its cache lies inside.
        budget_bytes: of the whole process tree; 160 MB without it.
        progress: told (phase, done, total, note).

    Returns:
        The `train` JSON with `report` and `seconds`, and the same for a person.

    Raises:
        IntegrityError: the package came without its model or pictures.
        ConfigError: `out` holds files of the names that a run writes.
        BudgetError: the budget is too small; it names the smallest that fits.
    """
    from edgeladder.core.request import TrainRequest
    from edgeladder.jobs import supervisor

    bundle, pictures = NANO_BUNDLE, DEMO_PICTURES
    for path in (bundle / "manifest.json", pictures):
        if not path.is_file():
            raise IntegrityError(
                f"the package came without {path.name}",
                where=str(path),
                remedy="install edgeladder again, from its wheel or a whole checkout",
            )
    budget_bytes = DEMO_BYTES if budget_bytes is None else budget_bytes
    run = out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    require_ours(run, "run")
    print(f"{_WHAT}\nbudget {format_size(budget_bytes)}, run {run}\n", file=sys.stderr)
    started = time.monotonic()
    values = to_json(
        supervisor.train(
            TrainRequest(
                bundle=str(bundle),
                data=str(pictures),
                cache=str(run / "cache"),
                run=str(run),
                budget_bytes=budget_bytes,
                shots=SHOTS,
            ),
            progress,
        )
    )
    from edgeladder.report import write_report  # only now: what it imports counts as well

    values["report"] = str(write_report(Path(values["run"])))
    values["seconds"] = round(time.monotonic() - started, 1)
    return values, say(values)


def say(values: dict[str, Any]) -> str:
    """What a run of the demo showed, for a terminal."""
    from rich.console import Console

    console = Console(width=88, highlight=False, force_terminal=sys.stdout.isatty())
    with console.capture() as captured:
        _screen(console, values)
    return captured.get().rstrip()


def _screen(console: Any, values: dict[str, Any]) -> None:
    accuracy, memory = values["accuracy"], values["memory"]
    console.print(f"\n[bold]Accuracy[/bold] on held-out pictures ({accuracy['split']})")
    for label, share, colour in (
        ("zero-shot, from names alone", accuracy["zero_shot"], "blue"),
        (f"tuned, {SHOTS} pictures a class", accuracy["tuned"], "green"),
    ):
        console.print(f"  {label:<30}{_bar(share, colour)} [bold]{100 * share:5.1f} %[/bold]")
    budget = memory["budget_bytes"]
    console.print(f"\n[bold]Memory[/bold], peak of the whole process tree, budget {_size(budget)}")
    for name, phase in memory["phases"].items():
        peak = phase.get("measured_peak_bytes")
        if peak is not None:
            inside = peak <= budget
            bar = _bar(min(1.0, peak / budget), "green" if inside else "red")
            planned = _size(phase.get("planned_peak_bytes"))
            console.print(f"  {name:<30}{bar} [bold]{_size(peak):>8}[/bold]  planned {planned}")
    console.print(
        f"\n{values['steps']} steps, {values['seconds']} s in all, engine {values['engine']}, "
        f"budget held by: {memory['enforcement']}"
    )
    console.print(f"[bold]Report[/bold]  {values['report']}", soft_wrap=True)
    console.print(
        "\n[bold]Next[/bold]  your own pictures, one folder a class:\n"
        f"  edgeladder train --bundle nano --data PICTURES --budget 160MB\n"
        f"  edgeladder predict --run {values['run']} PICTURE.jpg",
        soft_wrap=True,
    )


def _bar(share: float, colour: str, width: int = 28) -> str:
    full = round(share * width)
    return f"[{colour}]{'━' * full}[/{colour}][dim]{'─' * (width - full)}[/dim]"


def _size(size_bytes: float | None) -> str:
    return "-" if size_bytes is None else format_size(size_bytes)
