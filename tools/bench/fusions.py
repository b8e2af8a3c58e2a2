#!/usr/bin/env python
"""What onnxruntime's own fusions do to a frozen block, and what optimising it ahead saves.

    python -m tools.bench.fusions --bundle B16 --bundle B16-int8 --out fusions.csv

One block of each bundle (the fourth segment), opened in four ways, which take turns:

    all        every fusion that onnxruntime knows
    ours       without BiasGelu and SkipLayerNormalization, as `open_segment` has it
    ahead      the graph that `ours` makes, written once, opened without optimisation
    none       no fusion at all

Told are the processor's seconds of a run and of opening (of the process, so that other work on the
machine counts little; one thread), and the largest difference to `none` beside the largest value.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from edgeladder.core.bundle import Bundle

WAYS = ("all", "ours", "ahead", "none")
_SLOWER = ["BiasGeluFusion", "SkipLayerNormFusion"]
_BLOCK = 3  # of the segments: a block, not the stem


def opened(path: Path, way: str, ahead: Path) -> Any:
    """A session, opened one way."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    if way in ("ahead", "none"):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        str(ahead if way == "ahead" else path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=_SLOWER if way == "ours" else [],
    )


def write_ahead(path: Path, ahead: Path) -> None:
    """Let onnxruntime write what `ours` runs, in forms that every processor reads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(ahead)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_SLOWER
    )


def measure(bundle: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each way."""
    record = Bundle.open(bundle, verify=False)
    segment = record.manifest.image.segments[_BLOCK]
    path = record.path(segment.file)
    random = np.random.default_rng(0)
    feeds = {x.name: random.standard_normal((1, *x.shape), np.float32) for x in segment.inputs}
    with tempfile.TemporaryDirectory() as folder:
        ahead = Path(folder) / "ahead.onnx"
        write_ahead(path, ahead)
        weights = path.with_suffix(".weights")  # which what was written still names
        shutil.copy(weights, ahead.with_name(weights.name))
        opening: dict[str, list[float]] = {way: [] for way in WAYS}
        running: dict[str, list[float]] = {way: [] for way in WAYS}
        outputs = {}
        for _ in range(rounds):
            for way in WAYS:
                began = time.process_time()
                session = opened(path, way, ahead)
                opening[way].append(time.process_time() - began)
                session.run(None, feeds)
                began = time.process_time()
                outputs[way] = session.run(None, feeds)[0]
                running[way].append(time.process_time() - began)
                del session
    exact = outputs["none"]
    return [
        {
            "bundle": bundle.name,
            "way": way,
            "run_ms": round(1e3 * median(running[way]), 2),
            "open_ms": round(1e3 * median(opening[way]), 2),
            "difference": f"{np.abs(outputs[way] - exact).max() / np.abs(exact).max():.1e}",
        }
        for way in WAYS
    ]


def main() -> int:
    """Measure, print a table, keep its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, action="append", required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = [row for bundle in options.bundle for row in measure(bundle, options.rounds)]
    with options.out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print("| bundle | way | run ms | open ms | difference |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(str(value) for value in row.values())} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
