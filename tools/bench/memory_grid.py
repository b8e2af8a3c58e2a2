"""Predicted against measured peaks over a grid of configurations: each phase, both engines.

    python tools/bench/memory_grid.py --bundle A --bundle B --held-out B --rows rows.jsonl
    python tools/bench/memory_grid.py --show rows.jsonl [--show more.jsonl]

Every configuration runs in a supervised worker, just as `edgeladder train` does it: training from a
fabricated cache for a few steps, precompute over a few generated pictures. What is measured (the
kernel's high-water mark of the worker, plus a bare supervisor) is set against the plan's prediction
for the same sizes. Coefficients (edgeladder/budget/costs.py) were fitted on rows of bundles that
are not --held-out. An environment has one engine: run it in one with onnxruntime-training too, and
show both files together. Exit code 1 if a prediction is off by more than promised.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

Config = dict[str, Any]
SHORT, OVER = 0.0, 1 / 0.85 - 1  # an upper bound, of which 85 % are measured
_SIZES = ((8, 10), (32, 100), (64, 400))
_WAYS: tuple[Config, ...] = (
    {"mode": "fused", "moments": "fp32", "arena": True},
    {"mode": "fused", "moments": "fp32", "arena": False},
    {"mode": "recompute", "moments": "fp32", "arena": True},
    {"mode": "recompute", "moments": "fp32", "arena": False},
    {"mode": "recompute", "moments": "int8", "arena": False},
    {"mode": "chunked", "moments": "fp32", "arena": False, "chunk": 8, "hold": False},
    {"mode": "chunked", "moments": "fp32", "arena": False, "chunk": 16, "hold": True},
    {"mode": "chunked", "moments": "int8", "arena": False, "chunk": 32, "hold": False},
)
# windows small enough to be full with ten classes: what grows then is not the window
FLAT: tuple[Config, ...] = tuple(
    {"engine": "stock", "phase": "train", "batch": 32, "pictures": pictures, "classes": classes}
    | {"mode": "chunked", "moments": "fp32", "arena": False, "chunk": 4, "hold": False}
    for pictures, classes in ((1_000, 10), (50_000, 10), (1_000, 1_000))
)


# heads are fitted before the evaluation, and a kernel's memory is its pictures squared
HEADS: tuple[Config, ...] = tuple(
    {"engine": "stock", "phase": "evaluate", "batch": 32, "pictures": pictures, "classes": 10}
    | {"head": kind}
    for kind, pictures in (
        *(("blend", count) for count in (40, 160, 300, 600)),
        *(("kernel", count) for count in (160, 600)),
        ("gda", 160),
        ("none", 160),
    )
)


def grid(bundles: list[Path], phases: list[str], quick: bool) -> Iterator[Config]:
    """Configurations: bundle, phase, and its sizes."""
    from edgeladder.core.bundle import Bundle
    from edgeladder.runtime.engine import installed_engines

    training = "ort-training" in installed_engines()
    engine = "ort-training" if training else "stock"
    for bundle in bundles:
        if "train" in phases:
            can_train = not training or bool(Bundle.open(bundle).manifest.ladder.ort_training)
            ways = (_WAYS[:1] if training else _WAYS) if can_train else ()
            for (batch, classes), way in itertools.product(_SIZES[1:2] if quick else _SIZES, ways):
                sizes = {"batch": batch, "classes": classes, "pictures": 500}
                yield {"bundle": bundle, "phase": "train", "engine": engine, **sizes, **way}
        if "precompute" in phases:
            for whole, batch in itertools.product((False, True), (1,) if quick else (1, 2, 4, 8)):
                yield {"bundle": bundle, "phase": "precompute", "whole": whole, "batch": batch}
        if "flat" in phases:
            yield from ({"bundle": bundle, **config} for config in FLAT)
        if "evaluate" in phases:
            yield from ({"bundle": bundle, **config} for config in HEADS)


def verdict(rows: list[Config]) -> bool:
    """Whether every prediction keeps what is promised; says so for fitted and held-out rows."""
    good = True
    for held in (False, True):
        errors = [row["error"] for row in rows if row["held_out"] is held]
        if errors:
            kept = min(errors) >= SHORT and max(errors) <= OVER
            good = good and kept
            print(
                f"{len(errors)} {'held-out' if held else 'fitted'} configurations: planned / "
                f"measured from {1 + min(errors):.2f} to {1 + max(errors):.2f}"
                f"{'' if kept else ' (more than promised)'}",
                file=sys.stderr,
            )
    return good


def table(rows: list[Config]) -> str:
    """Rows as Markdown, one table per phase."""
    names = {
        "precompute": ["bundle", "whole", "batch"],
        "train": ["bundle", "engine", "mode", "chunk", "hold", "arena", "moments"]
        + ["batch", "classes", "pictures"],
        "evaluate": ["bundle", "head", "classes", "pictures"],
    }
    parts = []
    for phase, columns in names.items():
        heads = [*columns, "held out", "planned MB", "measured MB", "planned / measured"]
        lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
        for row in (row for row in rows if row["phase"] == phase):
            cells = [_cell(row.get(name)) for name in columns]
            cells += [_cell(row["held_out"]), f"{row['planned_mb']:.0f}"]
            cells += [f"{row['measured_mb']:.0f}", f"{1 + row['error']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
        if len(lines) > 2:
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def main() -> int:
    """Run the grid, or show rows that were kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, action="append", default=[])
    parser.add_argument("--held-out", action="append", default=[], help="names of bundles")
    parser.add_argument(
        "--phase", action="append", help="train, precompute, evaluate, flat; default: the first two"
    )
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="one size of each")
    parser.add_argument("--parts", action="store_true", help="show what predictions are made of")
    parser.add_argument("--rows", type=Path, help="append each row to this file")
    parser.add_argument("--show", type=Path, action="append", help="rows kept before")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [json.loads(line) for path in options.show or [] for line in path.open()]
    if not options.show:
        from tools.bench.grid_phases import Phases

        with tempfile.TemporaryDirectory() as folder:
            phases = Phases(Path(folder), options.steps)
            wanted = options.phase or ["train", "precompute"]
            for config in grid(options.bundle, wanted, options.quick):
                row = phases.measure(config)
                row["held_out"] = row["bundle"] in options.held_out
                rows.append(row)
                print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
                if options.parts:
                    print(row["parts"], file=sys.stderr)
                if options.rows:
                    with options.rows.open("a") as stream:
                        stream.write(json.dumps(row) + "\n")
    print(json.dumps(rows) if options.json else table(rows))
    return 0 if verdict(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
