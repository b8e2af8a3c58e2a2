"""One row of tools/onnxruntime_versions: relative errors of this environment's onnxruntime."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from safetensors.numpy import load_file

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import LossConfig
from edgeladder.runtime.engine.golden import ArrayInputs, golden_train, groups_of, perturbed, replay
from edgeladder.runtime.engine.protocol import StepPlan
from edgeladder.runtime.engine.stock import StockEngine

TOLERANCE = 1e-4


def gradients(bundle: Bundle, plan: StepPlan) -> dict[str, np.ndarray]:
    """Every gradient of the golden batch."""
    golden = load_file(bundle.path(bundle.manifest.ladder.golden))
    arrays = {n.partition("/")[2]: v for n, v in golden.items() if n.startswith("input/")}
    engine = StockEngine(bundle, plan, golden_train(), LossConfig())
    engine.set_parameters(perturbed(engine.parameters()))
    engine.gradients(ArrayInputs(arrays, groups_of(bundle)))
    return {name: value.copy() for name, value in engine.gradient_views.items()}


def error(found: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> float:
    """The largest relative error of a tensor."""
    return max(
        float(np.linalg.norm(found[n] - r)) / (float(np.linalg.norm(r)) + 1e-12)
        for n, r in reference.items()
    )


def main() -> None:
    """Print the row; fail above the tolerance."""
    bundle, saved = Bundle.open(sys.argv[1]), Path(sys.argv[2])
    result = replay(bundle, engine="stock", threads=1)
    ways = [
        gradients(bundle, plan)
        for plan in (
            StepPlan(threads=1),
            StepPlan("recompute", threads=1),
            StepPlan("chunked", 2, threads=1),
        )
    ]
    if not saved.exists():
        arrays: Any = ways[0]  # free names, none of which is savez's own
        np.savez(saved, **arrays)
    reference = dict(np.load(saved))
    errors = [result["loss_error"], result["state_error"], 0.0]
    errors += [error(way, ways[0]) for way in ways[1:]]
    errors.append(error(ways[0], reference))
    cells = [f"{value:.0e}" if value else "0" for value in errors]
    cells[2] = "reference"
    print(f"| {onnxruntime.__version__} | {platform.python_version()} | {' | '.join(cells)} |")
    if not result["ok"] or max(errors[3:]) > TOLERANCE:
        raise SystemExit(f"onnxruntime {onnxruntime.__version__} computes other numbers")


if __name__ == "__main__":
    main()
