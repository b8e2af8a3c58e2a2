"""Symbolic or fixed sizes: the fused step of one bundle, both ways, in alternating runs.

    python tools/bench/extents.py BUNDLE [--pictures 32] [--classes 100] [--rounds 40] [--json]

The bundle's graphs leave the number of pictures and classes open. onnxruntime can fix them when it
loads a graph (free dimension overrides), which is what a set of static graphs would amount to.
This prints median milliseconds of both, the ratio pair by pair, and load times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edgeladder.core.bundle import Bundle


def session(path: Path, sizes: dict[str, int] | None, threads: int) -> tuple[Any, float]:
    """A session with the engine's options, sizes fixed or not; and the seconds it took to load."""
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = sizes is not None  # static sizes are what memory patterns are for
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # spinning threads of one session would steal time from the other's measurement
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for name, size in (sizes or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    started = time.perf_counter()
    opened = onnxruntime.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["CommonSubexpressionElimination", "SkipLayerNormFusion"],
    )
    return opened, time.perf_counter() - started


def feeds(opened: Any, sizes: dict[str, int]) -> dict[str, np.ndarray]:
    """Random values for every input."""
    random = np.random.default_rng(0)
    return {
        item.name: random.standard_normal([sizes.get(d, d) for d in item.shape]).astype(np.float32)
        * 0.05
        for item in opened.get_inputs()
    }


def main() -> None:
    """Time both ways in turns; print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--pictures", type=int, default=32)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle, verify=False)
    path = bundle.path(bundle.manifest.ladder.graphs["fused"].file)
    sizes = {"B": options.pictures, "C": options.classes}
    dynamic, dynamic_load = session(path, None, options.threads)
    static, static_load = session(path, sizes, options.threads)
    values = feeds(dynamic, sizes)
    times: dict[str, list[float]] = {"dynamic": [], "static": []}
    for turn in range(options.rounds + 3):
        order = [("dynamic", dynamic), ("static", static)]
        for name, opened in order if turn % 2 else order[::-1]:
            started = time.perf_counter()
            opened.run(None, values)
            if turn >= 3:
                times[name].append((time.perf_counter() - started) * 1e3)
    ratios = [d / s for d, s in zip(times["dynamic"], times["static"], strict=True)]
    result = {
        "pictures": options.pictures,
        "classes": options.classes,
        "dynamic_ms": statistics.median(times["dynamic"]),
        "static_ms": statistics.median(times["static"]),
        "dynamic_over_static": statistics.median(ratios),
        "dynamic_load_seconds": dynamic_load,
        "static_load_seconds": static_load,
    }
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:22} {value:.3f}" if isinstance(value, float) else f"{name:22} {value}")


if __name__ == "__main__":
    main()
