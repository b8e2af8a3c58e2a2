#!/usr/bin/env python3
"""Training under random budgets with a leak and a balloon: the tree never passes its budget.

    python tools/bench/stress_budget.py --bundle bundle --data pictures [--budgets 20]

Draws budgets between the smallest that fits and twice that, trains under each with a leak in the
worker and a child process that swells and shrinks, samples the tree from outside every 5 ms, and
compares the final parameters with an unconstrained run of the same seed. Prints a table and, with
--json, one JSON object. Exit code 1 if any run passed its budget, ended otherwise than with 0 or
3, differs from the reference, or lost more than a step.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

from edgeladder.jobs.run_directory import read_metrics  # noqa: E402
from tools.bench.outside import TreeSampler  # noqa: E402

MB = 1_000_000
_SAME_CHUNK, _OTHER_CHUNK = 0.0, 1e-5


def request(options: argparse.Namespace, run: Path, budget: int, engine: str) -> dict[str, Any]:
    """A training request as `edgeladder train` would make it."""
    return {
        "bundle": str(options.bundle),
        "data": str(options.data),
        "cache": str(options.cache),
        "run": str(run),
        "budget_bytes": budget,
        "engine": engine,
        "seed": 0,
        "threads": options.threads,
        "restarts": 6,
        "shots": options.shots,
        "overrides": [f"train.steps={options.steps}", "train.checkpoint_steps=10"],
    }


def run(values: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    """One supervised training as a bare process tree, watched from outside."""
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    told = json.dumps({"command": "train", "json": True, "request": values})
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeladder.jobs", told],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    sampler = TreeSampler(process.pid)
    sampler.start()
    output, _ = process.communicate()
    peak = sampler.stop()
    answer = json.loads(output) if output.strip() else {}
    return {
        "code": process.returncode,
        "peak_bytes": peak,
        "samples": sampler.samples,
        "seconds": round(time.monotonic() - started, 1),
        "answer": answer,
    }


def steps_of(run_folder: Path) -> tuple[int, int]:
    """The most steps a restart had to repeat, and those that are lost for good after the last one.

    Both from the run's own record; what a restart repeats comes out with the same bits.
    """
    repeated, lost = 0, 0
    for record in read_metrics(run_folder / "metrics.jsonl"):
        if record["kind"] == "restart" and record["phase"] == "train":
            lost = record["last_step"] - record["checkpoint_step"]
            repeated = max(repeated, lost)
    return repeated, lost


def difference(run_folder: Path, reference: dict[str, np.ndarray]) -> tuple[float, bool]:
    """The largest difference of a parameter, and whether the chunk ever changed."""
    mine = load_file(run_folder / "adapter.safetensors")
    largest = max(float(np.abs(mine[name] - reference[name]).max()) for name in reference)
    plan = json.loads((run_folder / "plan.json").read_text())["phases"]["train"]
    changed = plan.get("mode") != "fused" or any(
        record["kind"] == "chunk" or (record["kind"] == "restart" and record["phase"] == "train")
        for record in read_metrics(run_folder / "metrics.jsonl")
    )
    return largest, changed


def main() -> int:
    """Run the stress test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundle"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--budgets", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        free = run(request(options, folder / "free", 4_000 * MB, "stock"), {})
        if free["code"]:
            print(json.dumps(free["answer"]), file=sys.stderr)
            return 1
        reference = load_file(folder / "free" / "adapter.safetensors")
        refused = run(request(options, folder / "refused", MB, "stock"), {})
        least = refused["answer"]["error"]["minimum_budget_bytes"]
        for number in range(options.budgets):
            budget = int(chance.uniform(1, 2) * least)
            leak = int(chance.uniform(0, 1) * budget / options.steps)
            if number % 4 == 3:  # more than any restart can outlast: must end with exit 3
                leak = int(chance.uniform(0.15, 0.3) * budget)
            balloon = int(chance.uniform(0, 0.3) * budget)
            place = folder / f"run-{number}"
            environment = {"EDGELADDER_LEAK": str(leak), "EDGELADDER_BALLOON": str(balloon)}
            done = run(request(options, place, budget, "troubled_engine:open"), environment)
            row = {
                "budget_mb": budget / MB,
                "leak_mb_step": leak / MB,
                "balloon_mb": balloon / MB,
                "code": done["code"],
                "peak_mb": done["peak_bytes"] / MB,
                "seconds": done["seconds"],
                "repeated_steps": steps_of(place)[0],
                "lost_steps": steps_of(place)[1] if done["code"] else 0,
                "limit": (done["answer"].get("memory") or {}).get("enforcement"),
                "actions": sum(
                    record["kind"] in ("memory", "restart")
                    for record in read_metrics(place / "metrics.jsonl")
                ),
            }
            row["kernel_peak_mb"] = (
                max(
                    (
                        record["limit_peak_bytes"] or 0
                        for record in read_metrics(place / "metrics.jsonl")
                        if record["kind"] == "phase"
                    ),
                    default=0,
                )
                / MB
            )
            if done["code"] == 0:
                row["difference"], row["chunk_changed"] = difference(place, reference)
            row["ok"] = verdict(row)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    good = all(row["ok"] for row in rows)
    if options.json:
        print(json.dumps({"minimum_budget_bytes": least, "ok": good, "runs": rows}))
    else:
        print(table(rows))
    return 0 if good else 1


def verdict(row: dict[str, Any]) -> bool:
    """Whether a run kept every promise."""
    below = row["peak_mb"] <= row["budget_mb"] and row["kernel_peak_mb"] <= row["budget_mb"]
    if row["code"] == 0:
        allowed = _OTHER_CHUNK if row["chunk_changed"] else _SAME_CHUNK
        return bool(below and row["difference"] <= allowed)
    # what the last life of the worker left: a step in flight may be lost, no more
    return bool(below and row["code"] == 3 and row["lost_steps"] <= 1)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as Markdown."""
    lines = [
        "| budget MB | leak MB/step | balloon MB | exit | peak MB | kernel MB | repeated | lost | "
        "differs |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['budget_mb']:.0f} | {row['leak_mb_step']:.1f} | {row['balloon_mb']:.0f} | "
            f"{row['code']} | {row['peak_mb']:.0f} | {row['kernel_peak_mb']:.0f} | "
            f"{row['repeated_steps']} | {row['lost_steps']} | "
            f"{format(row['difference'], '.1e') if 'difference' in row else '-'} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
