#!/usr/bin/env python
"""How seconds and peaks grow with pictures and with classes, phase by phase, inside one budget.

    python -m tools.bench.scale --bundle BUNDLE --state scale.jsonl --plot scale.svg
    python -m tools.bench.scale --state scale.jsonl --show

Every point is `edgeladder train` as a bare supervisor runs it, on a data set and a cache that are
made up (training's time and memory do not depend on what they say): so many pictures of the first
number of classes, and so many classes of --at-pictures pictures. Up to --drawn pictures are real
JPEGs and pass the towers, so that precompute is measured too; all others are in the cache. The step
is chunked by --chunk, holds nothing that it can compute again, and the budget, unless one is given,
is the smallest that fits the largest point: all points are computed alike. The peak is the
plan's measure, of the whole process tree. One row a point and phase in --state; points that are
there are not run again. Exit code 1 if a phase's peak grows by more than --flat along a line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from edgeladder.core.bundle import Bundle  # noqa: E402
from edgeladder.core.sizes import parse_size  # noqa: E402
from tools.bench.fabricated_data import fill_cache, write_data  # noqa: E402
from tools.bench.line_plot import line_plot  # noqa: E402
from tools.bench.result_rows import add_lines, load_lines, save  # noqa: E402

MB = 1_000_000
_PHASES = ("precompute", "train", "evaluate")
_NO_HEAD = ("head.kind=none", "head.weight=null", "head.full_at=null")
_KEPT = (
    *("along", "pictures", "classes", "phase", "chunk", "steps", "budget_bytes", "seconds"),
    *("step_ms", "planned_bytes", "peak_bytes", "enforcement", "error"),
)
Row = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One size of data; `along` names the line that it is on."""

    along: str  # pictures or classes
    pictures: int
    classes: int


@dataclass(frozen=True)
class Asked:
    """What is the same for all points."""

    bundle: Path
    chunk: int
    steps: int
    test: int
    drawn: int
    overrides: tuple[str, ...]
    threads: int
    work: Path


def points(pictures: list[int], classes: list[int], at_pictures: int) -> Iterator[Point]:
    """Both lines, the smallest first."""
    for count in sorted(pictures):
        yield Point("pictures", count, min(classes))
    for count in sorted(classes):
        yield Point("classes", max(at_pictures, count), count)


def prepare(point: Point, asked: Asked, *, filled: bool) -> tuple[Path, Path]:
    """The point's data, and a cache of its own; of a point that is only planned an empty one."""
    drawn = point.along == "pictures" and point.pictures <= asked.drawn
    kind = "drawn" if drawn else "text"
    name = f"{kind}-{point.pictures}-{point.classes}"
    data = asked.work / f"{name}.zip"
    write_data(data, point.pictures, point.classes, asked.test, drawn=drawn)
    cache = asked.work / f"cache-{name}"
    if filled and not drawn:
        bundle = Bundle.open(asked.bundle, verify=False)
        fill_cache(bundle, cache, data, point.pictures + asked.test)
    return data, cache


def run(point: Point, asked: Asked, budget: int) -> tuple[Row, Path]:
    """What `train --json` answers within a budget, and the run's folder.

    Raises:
        RuntimeError: it failed for another reason than the budget.
    """
    data, cache = prepare(point, asked, filled=budget > MB)
    folder = Path(tempfile.mkdtemp(dir=asked.work))
    request = {
        "bundle": str(asked.bundle.resolve()),
        "data": str(data),
        "cache": str(cache),
        "run": str(folder / "run"),
        "budget_bytes": budget,
        "engine": "stock",
        "threads": asked.threads,
        "mode": "chunked" if asked.chunk else None,
        "chunk": asked.chunk or None,
        "hold": False if asked.chunk else None,  # else what a budget leaves is filled
        "overrides": [f"train.steps={asked.steps}", *asked.overrides],
    }
    told = json.dumps({"command": "train", "json": True, "request": request})
    done = subprocess.run(
        [sys.executable, "-m", "edgeladder.jobs", told],
        capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    answer: Row = json.loads(done.stdout) if done.stdout else {}
    if done.returncode not in (0, 3) or not answer:
        raise RuntimeError(
            f"exit code {done.returncode}: {done.stdout[-400:]} {done.stderr[-800:]}"
        )
    return answer, folder / "run"


def least_budget(point: Point, asked: Asked) -> int:
    """The smallest budget that a point fits, as a refusal names it."""
    return int(run(point, asked, MB)[0]["error"]["minimum_budget_bytes"])


def measure(point: Point, asked: Asked, budget: int) -> list[Row]:
    """A point's rows, one a phase that had something to do."""
    started = time.monotonic()
    answer, folder = run(point, asked, budget)
    wall = round(time.monotonic() - started, 2)
    common = {**asdict(point), "bundle": str(asked.bundle), "chunk": asked.chunk}
    common |= {"steps": asked.steps, "budget_bytes": budget, "wall_seconds": wall}
    if "error" in answer:
        return [{**common, "phase": "-", "error": answer["error"]["message"]}]
    planned = json.loads((folder / "plan.json").read_text())["phases"]
    memory = answer["memory"]
    return [
        {
            **common,
            "phase": phase,
            "seconds": answer["seconds"][phase],
            "step_ms": answer["throughput"]["step_ms_median"] if phase == "train" else None,
            "planned_bytes": planned[phase]["planned_peak_bytes"],
            "peak_bytes": memory["phases"][phase]["measured_peak_bytes"],
            "enforcement": memory["enforcement"],
        }
        for phase in _PHASES
        if phase in memory["phases"] and (phase != "precompute" or answer["cache"]["new"])
    ]


def growth(rows: list[Row], along: str, phase: str) -> float | None:
    """How much higher the highest peak of a line is than its first; None of fewer than two."""
    peaks = [row["peak_bytes"] for row in lined(rows, along, phase)]
    return max(peaks) / peaks[0] - 1 if len(peaks) > 1 else None


def lined(rows: list[Row], along: str, phase: str) -> list[Row]:
    """A line's rows of one phase, the smallest first."""
    chosen = [r for r in rows if r["along"] == along and r["phase"] == phase]
    return sorted(chosen, key=lambda row: int(row[along]))


def table(rows: list[Row]) -> str:
    """Markdown: a row a point and phase, then how flat each line is."""
    heads = ["pictures", "classes", "phase", "seconds", "step ms", "planned MB", "peak MB"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    flat = []
    for along in ("pictures", "classes"):
        for phase in _PHASES:
            for row in lined(rows, along, phase):
                cells = [f"{row['pictures']:,}", f"{row['classes']:,}", phase]
                cells += [f"{row['seconds']:.1f}", _cell(row["step_ms"])]
                cells += [f"{row[name] / MB:.1f}" for name in ("planned_bytes", "peak_bytes")]
                lines.append(f"| {' | '.join(cells)} |")
            more = growth(rows, along, phase)
            if more is not None:
                flat.append(f"- {phase}, by {along}: {100 * more:+.1f} %")
    failed = [f"- {r['pictures']} x {r['classes']}: {r['error']}" for r in rows if "error" in r]
    return "\n".join([*lines, "", *flat, *failed])


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def plot(rows: list[Row]) -> str:
    """Peaks over pictures and over classes, a line a phase."""
    lines = {
        f"{phase}, by {along}": {
            float(row[along]): row["peak_bytes"] / MB for row in lined(rows, along, phase)
        }
        for along in ("pictures", "classes")
        for phase in _PHASES
    }
    return line_plot(
        {name: line for name, line in lines.items() if line},
        "pictures or classes; peak of the whole process tree in MB",
        step=20,
        low=0,
    )


def command_line() -> argparse.Namespace:
    """This command's line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--state", type=Path, required=True, help="one JSON line a row")
    parser.add_argument("--pictures", type=int, nargs="*", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--classes", type=int, nargs="*", default=[10, 30, 100, 300, 1_000])
    parser.add_argument("--at-pictures", type=int, default=1_000, help="of the line of classes")
    parser.add_argument("--drawn", type=int, default=0, help="real pictures up to so many")
    parser.add_argument("--budget", type=parse_size, help="default: the least of the largest point")
    parser.add_argument("--chunk", type=int, default=4, help="0: as the plan chooses")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--test", type=int, default=64, help="pictures that are held out")
    parser.add_argument("--set", action="append", default=[], help="default: no closed-form head")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="keeps data and caches; default: a temporary one")
    parser.add_argument("--flat", type=float, default=0.05, help="growth that is allowed")
    parser.add_argument("--plot", type=Path, help="file to draw, .svg")
    parser.add_argument("--csv", type=Path, help="file for the rows, as results/ keeps them")
    parser.add_argument("--show", action="store_true", help="show --state, run nothing")
    given = parser.parse_args()
    if not given.show and given.bundle is None:
        parser.error("--bundle is needed, or --show")
    return given


def run_all(given: argparse.Namespace, work: Path, rows: list[Row]) -> None:
    """Every point that is not in the state, into it."""
    asked = Asked(
        given.bundle, given.chunk, given.steps, given.test, given.drawn,
        tuple(given.set or _NO_HEAD), given.threads, work,
    )  # fmt: skip
    wanted = list(points(given.pictures, given.classes, given.at_pictures))
    done = {(row["along"], row["pictures"], row["classes"]) for row in rows}
    budget = given.budget or next((int(row["budget_bytes"]) for row in rows), 0)
    for point in wanted:
        if (point.along, point.pictures, point.classes) in done:
            continue
        budget = budget or max(least_budget(p, asked) for p in _largest(wanted))
        same = [r for r in rows if (r["pictures"], r["classes"]) == (point.pictures, point.classes)]
        found = [{**row, "along": point.along} for row in same] or measure(point, asked, budget)
        rows += found
        add_lines(given.state, found)
        print(*table(found).splitlines()[2:], sep="\n", file=sys.stderr, flush=True)


def _largest(wanted: list[Point]) -> list[Point]:
    """The last point of either line."""
    last = {point.along: point for point in wanted}
    return list(last.values())


def main() -> int:
    """Run what is missing, print the table, draw the plot."""
    given = command_line()
    rows: list[Row] = load_lines(given.state)
    if not given.show:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            work = given.work or Path(folder)
            work.mkdir(parents=True, exist_ok=True)
            run_all(given, work.resolve(), rows)
    print(table(rows))
    if given.plot:
        given.plot.write_text(plot(rows), encoding="utf-8")
    if given.csv:
        save(given.csv, [{name: row.get(name) for name in _KEPT} for row in rows], _KEPT)
    found = [growth(rows, along, phase) for along in ("pictures", "classes") for phase in _PHASES]
    steep = any(more is not None and more > given.flat for more in found)
    return 1 if steep or any("error" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
