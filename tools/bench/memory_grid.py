"""Predicted against measured peaks of training over a grid of configurations.

    python tools/bench/memory_grid.py --bundle bundle-a --bundle bundle-b [--json] [--quick]

Every configuration trains a few steps from a fabricated cache in a supervised worker, just as
`edgeladder train` does, and its measured peak (the kernel's high-water mark of the worker plus the
supervisor) is set against the plan's prediction for the same sizes. Bundles differ in model and
taps; batch, classes, cached pictures, mode, moments and engine are varied here. The table in
docs/memory.md comes from this script.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from fabricate import fabricate  # noqa: E402

from edgeladder.bundle import Bundle  # noqa: E402
from edgeladder.device.engine import installed_engines  # noqa: E402
from edgeladder.device.memory import meter  # noqa: E402
from edgeladder.device.memory.floor import MachineFloor, machine_floor  # noqa: E402
from edgeladder.device.memory.plan import Workload, plan  # noqa: E402
from edgeladder.device.train.request import TrainRequest  # noqa: E402
from edgeladder.device.train.run import MetricsLog, read_metrics  # noqa: E402
from edgeladder.device.train.supervisor import Supervisor  # noqa: E402

MB = 1_000_000
_PLENTY = 16_000 * MB
Config = dict[str, Any]


def grid(bundles: list[Path], quick: bool) -> Iterator[Config]:
    """Configurations: bundle, engine, mode, chunk, moments, batch, classes, pictures."""
    ways: list[Config] = [
        {"engine": "stock", "mode": "fused", "moments": "fp32"},
        {"engine": "stock", "mode": "fused", "moments": "fp32", "arena": False},
        {"engine": "stock", "mode": "recompute", "moments": "fp32"},
        {"engine": "stock", "mode": "recompute", "moments": "fp32", "arena": False},
        {"engine": "stock", "mode": "recompute", "moments": "int8", "arena": False},
        {"engine": "stock", "mode": "chunked", "chunk": 8, "moments": "fp32"},
        {"engine": "stock", "mode": "chunked", "chunk": 32, "moments": "int8"},
    ]
    if "ort-training" in installed_engines():
        ways.append({"engine": "ort-training", "mode": "fused", "moments": "fp32"})
    sizes = [(32, 100)] if quick else [(8, 10), (32, 100), (64, 400)]
    for bundle, (batch, classes), way in itertools.product(bundles, sizes, ways):
        yield {"bundle": bundle, "batch": batch, "classes": classes, "pictures": 500, **way}
    if not quick:
        way = ways[3]
        for pictures, classes in ((1_000, 10), (50_000, 10), (1_000, 1_000)):
            for mode in (way, ways[5]):
                yield {
                    "bundle": bundles[0],
                    "batch": 32,
                    "classes": classes,
                    "pictures": pictures,
                    **mode,
                }


def measure(config: Config, folder: Path, floor: MachineFloor, steps: int) -> Config:
    """Plan one configuration, train it, and put both peaks side by side."""
    bundle = Bundle.open(config["bundle"], verify=False)
    cache = folder / f"cache-{Path(config['bundle']).name}"
    selection = fabricate(bundle, cache, config["pictures"], config["classes"])
    run = Path(tempfile.mkdtemp(dir=folder))
    (run / "checkpoints").mkdir()
    selection.save(run / "selection.safetensors")
    workload = Workload(
        manifest=bundle.manifest,
        classes=config["classes"],
        pictures=config["pictures"],
        batch=config["batch"],
        moments=config["moments"],
        engine=config["engine"],
        files={name: record.size for name, record in bundle.manifest.files.items()},
    )
    request = TrainRequest(bundle=str(bundle.folder), cache=str(cache), run=str(run), fence="none")
    own = meter.private(os.getpid())
    decided = plan(
        workload,
        floor,
        _PLENTY,
        supervisor_bytes=own,
        mode=config["mode"],
        chunk=config.get("chunk"),
        arena=config.get("arena", config["mode"] != "chunked"),
    )
    profile = bundle.manifest.profile.model_dump(mode="json")
    profile["train"]["moments"] = config["moments"]
    values = {
        "request": request.to_dict(),
        "budget_bytes": _PLENTY,
        "seed": 0,
        "threads": 2,
        "engine": config["engine"],
        "steps": steps,
        "batch": config["batch"],
        "warmup_steps": 1,
        "profile": profile,
        "plan": decided.to_dict(),
    }
    with Supervisor(request, None) as supervisor:
        supervisor.budget_bytes = _PLENTY
        supervisor.metrics = MetricsLog(run / "metrics.jsonl")
        trained = supervisor.phase("train", values)
    (record,) = (
        record
        for record in read_metrics(run / "metrics.jsonl")
        if record["kind"] == "phase" and record["phase"] == "train"
    )
    # this script is a fat supervisor; what a worker takes does not depend on it
    measured = record["worker_high_water_bytes"]
    phase = decided.phases["train"]
    return {
        **config,
        "bundle": Path(config["bundle"]).name,
        "planned_mb": (phase.planned_peak_bytes - own) / MB,
        "measured_mb": measured / MB,
        "error": (phase.planned_peak_bytes - own - measured) / (measured + floor.supervisor_bytes),
        "step_ms": trained["step_ms_median"],
        "parts": {name: round(size / MB, 1) for name, size in phase.parts.items()},
    }


def table(rows: list[Config]) -> str:
    """Rows as Markdown."""
    lines = [
        "| bundle | engine | mode | chunk | arena | moments | batch | classes | pictures | "
        "planned MB | measured MB | planned / measured | ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['bundle']} | {row['engine']} | {row['mode']} | {row.get('chunk') or ''} | "
            f"{'yes' if row.get('arena', row['mode'] != 'chunked') else 'no'} | "
            f"{row['moments']} | {row['batch']} | {row['classes']} | {row['pictures']} | "
            f"{row['planned_mb']:.0f} | {row['measured_mb']:.0f} | {1 + row['error']:.2f} | "
            f"{row['step_ms']:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the grid; exit code 1 if a prediction is off by more than promised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, action="append", required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", action="store_true", help="show what predictions are made of")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    floor = machine_floor()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for config in grid(options.bundle, options.quick):
            row = measure(config, Path(folder), floor, options.steps)
            rows.append(row)
            print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
            if options.parts:
                print(row["parts"], file=sys.stderr)
    print(json.dumps(rows) if options.json else table(rows))
    return 0 if all(-0.03 <= row["error"] <= 0.15 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
