"""`edgeladder demo`: the embedded model on the embedded pictures, start to end.

Nothing heavy is imported before the training is over: this process counts inside the budget.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeladder.budget.policy import DEMO_BYTES
from edgeladder.core.command_line import command
from edgeladder.core.errors import BudgetError, IntegrityError
from edgeladder.core.intervals import interval_text
from edgeladder.core.ownership import require_ours
from edgeladder.core.progress import QUIET, Progress
from edgeladder.core.records import to_json
from edgeladder.core.shipped import DEMO_PICTURES, NANO_BUNDLE
from edgeladder.core.sizes import format_size

if TYPE_CHECKING:
    from edgeladder.core.request import TrainRequest
    from edgeladder.core.result import RunResult

SHOTS = 16  # pictures per class to learn from
_MOST_BYTES = 2 * DEMO_BYTES  # that are taken unasked
_GROWN_BYTES = 2_000_000  # of this process, between being refused and being planned again
_WHAT = (
    "A frozen dual encoder (nano: EfficientNet-Lite0 and a small text transformer) meets 10 kinds\n"
    "of garment. It first names them from words alone, then a ladder beside it learns from 16\n"
    "pictures of each, here, on this machine, inside a memory budget."
)


def run_demo(
    *,
    out: Path | None = None,
    budget_bytes: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], str]:
    """Plan, precompute, train, evaluate and report on what ships with the package.

    Args:
        out: folder of the run; a new one below `runs/` without it. Its cache lies inside.
        budget_bytes: of the whole process tree; without it 160 MB, or what this machine's Python
            needs at least, where that is more.
        progress: told of phases and of evidence.

    Returns:
        The `train` JSON with `report` and `seconds`, and the same for a person.

    Raises:
        IntegrityError: the package came without its model or pictures.
        ConfigError: `out` holds files of the names that a run writes.
        BudgetError: the budget is too small; it names the smallest that fits.
    """
    from edgeladder.core.request import TrainRequest

    bundle, pictures = NANO_BUNDLE, DEMO_PICTURES
    for path in (bundle / "manifest.json", pictures):
        if not path.is_file():
            raise IntegrityError(
                f"the package came without {path.name}",
                where=str(path),
                remedy="install edgeladder again, from its wheel or a whole checkout",
            )
    run = out or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S")
    require_ours(run, "run")
    first = DEMO_BYTES if budget_bytes is None else budget_bytes
    request = TrainRequest(
        bundle=str(bundle),
        data=str(pictures),
        cache=str(run / "cache"),
        run=str(run),
        budget_bytes=first,
        shots=SHOTS,
    )
    if progress is None or progress.level > QUIET:
        print(f"{_WHAT}\nbudget {format_size(first)}, run {run}\n", file=sys.stderr)
    started = time.monotonic()
    values = to_json(_trained(request, progress, unasked=budget_bytes is None))
    from edgeladder.report import write_report  # only now: what it imports counts as well

    values["report"] = str(write_report(Path(values["run"])))
    values["seconds"] = round(time.monotonic() - started, 1)
    return values, say(values)


def _trained(request: TrainRequest, progress: Progress | None, *, unasked: bool) -> RunResult:
    """Train; within what is needed, where nobody asked for the budget and it does not do."""
    from edgeladder.jobs import supervisor

    evidence = progress.evidence if progress is not None else None
    try:
        return supervisor.train(request, progress, evidence)
    except BudgetError as error:
        least = error.minimum_budget_bytes
        if not unasked or least is None or least > _MOST_BYTES:
            raise
        if Path(request.folder).exists():  # it had begun, and the error says how to go on
            raise
        least += _GROWN_BYTES
        if progress is None or progress.level > QUIET:
            # a newer Python, or one that is emulated, is itself larger
            print(f"this Python needs a budget of {format_size(least)}\n", file=sys.stderr)
        return supervisor.train(replace(request, budget_bytes=least), progress, evidence)


def say(values: dict[str, Any]) -> str:
    """What a run of the demo showed, for a terminal."""
    accuracy, memory = values["accuracy"], values["memory"]
    lines = [f"Accuracy on held-out pictures ({accuracy['split']})"]
    for label, share in (
        ("zero-shot, from names alone", accuracy["zero_shot"]),
        (f"tuned, {SHOTS} pictures a class", accuracy["tuned"]),
    ):
        ends = interval_text(share, accuracy["count"])
        lines.append(f"  {label:<30}{_bar(share)} {100 * share:5.1f} %  {ends}")
    lines.append(f"  of {accuracy['count']} pictures; the ranges are 95 % intervals")
    budget = memory["budget_bytes"]
    lines += ["", f"Memory, peak of the whole process tree, budget {_size(budget)}"]
    for name, phase in memory["phases"].items():
        peak = phase.get("measured_peak_bytes")
        if peak is not None:
            planned = _size(phase.get("planned_peak_bytes"))
            bar = _bar(min(1.0, peak / budget))
            lines.append(f"  {name:<30}{bar} {_size(peak):>8}  planned {planned}")
    return "\n".join(
        [
            *lines,
            "",
            f"{values['steps']} steps, {values['seconds']} s in all, engine {values['engine']}, "
            f"budget held by: {memory['enforcement']}",
            f"Report  {values['report']}",
            "",
            "Next  your own pictures, one folder a class:",
            "  edgeladder train --bundle nano --data PICTURES --budget 160MB",
            f"  {command('predict', '--run', values['run'])} PICTURE.jpg",
        ]
    )


def _bar(share: float, width: int = 28) -> str:
    full = round(share * width)
    return "━" * full + "─" * (width - full)


def _size(size_bytes: float | None) -> str:
    return "-" if size_bytes is None else format_size(size_bytes)
