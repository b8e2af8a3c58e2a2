#!/usr/bin/env python3
"""Trainings under random budgets with a leak and a balloon: the tree never passes its budget.

    python tools/bench/stress_budget.py --case BUNDLE:PICTURES [--case ...] --runs 1000 \
        --state stress.jsonl
    python tools/bench/stress_budget.py --state stress.jsonl --summary

Draws a budget between the smallest that fits and twice that, trains under it with a leak in the
worker and a child process that swells and shrinks beside it, samples the tree from outside every
10 ms, and compares the final parameters with an unconstrained run of the same seed. Every fourth
leak is more than any number of restarts can outlast: that run must end with exit code 3 and name a
budget. Every fifth run fills a cache of its own. What run n does depends on --seed and n alone, and
each is one line of --state, so that a run stopped at any time goes on where it was.

Exit code 1 if any run passed its budget by either figure, ended otherwise than with 0 or 3, named
no budget, differs from the reference, or lost more than the step in flight.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import numpy as np  # noqa: E402

from edgeladder.core.tensors import TensorFile  # noqa: E402
from edgeladder.jobs.run_directory import read_metrics  # noqa: E402
from tools.bench.outside import TreeSampler  # noqa: E402
from tools.bench.result_rows import add_lines, load_lines  # noqa: E402
from tools.bench.stress_summary import Row, summary, verdict  # noqa: E402

MB = 1_000_000
_TOO_LONG_SECONDS = 600
_OUTLASTING = 4  # every so many-th leak is more than restarts can outlast
_FRESH_CACHE = 5  # every so many-th run fills a cache of its own


@dataclass(frozen=True)
class Case:
    """A bundle with pictures, and what is known of it before the first run."""

    bundle: str
    data: str
    cache: str
    least_bytes: int  # the smallest budget that fits
    reference: dict[str, np.ndarray]  # parameters of the unconstrained run


@dataclass(frozen=True)
class Draw:
    """What run `number` does."""

    number: int
    case: int
    budget_bytes: int
    leak_bytes: int  # lost each step
    balloon_bytes: int  # of the child that swells and shrinks
    fresh_cache: bool


def draw(seed: int, number: int, leasts: list[int], steps: int) -> Draw:
    """The draw of one run, whatever was run before it.

    Args:
        leasts: the smallest budget of each case.
        steps: of a training.
    """
    chance = random.Random(f"{seed}/{number}")
    case = chance.randrange(len(leasts))
    budget = int(chance.uniform(1, 2) * leasts[case])
    leak = int(chance.uniform(0, 1) * budget / steps)
    if number % _OUTLASTING == _OUTLASTING - 1:
        leak = int(chance.uniform(0.15, 0.3) * budget)
    balloon = int(chance.uniform(0, 0.3) * budget)
    return Draw(number, case, budget, leak, balloon, number % _FRESH_CACHE == 0)


def request(
    options: argparse.Namespace, case: tuple[str, str], cache: str, run: Path, budget: int
) -> dict[str, Any]:
    """A training request as `edgeladder train` would make it."""
    return {
        "bundle": case[0],
        "data": case[1],
        "cache": cache,
        "run": str(run),
        "budget_bytes": budget,
        "engine": "stock",
        "seed": 0,
        "threads": options.threads,
        "restarts": options.restarts,
        "shots": options.shots,
        # 8-bit moments are another computation: the reference would not be one
        "overrides": [
            f"train.steps={options.steps}",
            "train.checkpoint_steps=10",
            "train.moments=fp32",
        ],
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
    sampler = TreeSampler(process.pid, interval_seconds=0.01)
    sampler.start()
    try:
        output, _ = process.communicate(timeout=_TOO_LONG_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    peak = sampler.stop()
    return {
        "code": process.returncode,
        "peak_bytes": peak,
        "samples": sampler.samples,
        "seconds": round(time.monotonic() - started, 1),
        "answer": json.loads(output) if output.strip() else {},
    }


def prepare(options: argparse.Namespace, folder: Path) -> list[Case]:
    """The unconstrained run of each case, and what a refusal names as its smallest budget.

    Raises:
        SystemExit: the unconstrained run failed.
    """
    cases: list[Case] = []
    for index, told in enumerate(options.case):
        if told in options.case[:index]:  # named again, so that it is drawn more often
            cases.append(cases[options.case.index(told)])
            continue
        bundle, _, data = told.partition(":")
        cache, free = str(folder / f"cache-{index}"), folder / f"free-{index}"
        done = run(request(options, (bundle, data), cache, free, 4_000 * MB), {})
        if done["code"]:
            raise SystemExit(f"the unconstrained run of {told} failed: {done['answer']}")
        refused = run(request(options, (bundle, data), cache, folder / "refused", MB), {})
        least = int(refused["answer"]["error"]["minimum_budget_bytes"])
        cases.append(Case(bundle, data, cache, least, parameters(free)))
    return cases


def one(options: argparse.Namespace, drawn: Draw, case: Case, folder: Path) -> Row:
    """A run as drawn, and everything that is known of it afterwards."""
    place = folder / f"run-{drawn.number}"
    cache = str(folder / f"fresh-{drawn.number}") if drawn.fresh_cache else case.cache
    environment = {
        "EDGELADDER_LEAK": str(drawn.leak_bytes),
        "EDGELADDER_BALLOON": str(drawn.balloon_bytes),
    }
    values = request(options, (case.bundle, case.data), cache, place, drawn.budget_bytes)
    done = run({**values, "engine": "troubled_engine:open"}, environment)
    records = list(read_metrics(place / "metrics.jsonl"))
    phases = [record for record in records if record["kind"] == "phase"]
    restarts = [r for r in records if r["kind"] == "restart" and r["phase"] == "train"]
    repeated = [record["last_step"] - record["checkpoint_step"] for record in restarts]
    error = done["answer"].get("error") or {}
    row: Row = {
        "number": drawn.number,
        "case": drawn.case,
        "budget_bytes": drawn.budget_bytes,
        "leak_bytes": drawn.leak_bytes,
        "balloon_bytes": drawn.balloon_bytes,
        "fresh_cache": drawn.fresh_cache,
        "code": done["code"],
        "seconds": done["seconds"],
        "samples": done["samples"],
        # seen from outside, proportional; and the kernel's mark of all that the limit holds, page
        # cache of the files read included, with the supervisor outside it
        "sampled_bytes": done["peak_bytes"],
        "kernel_bytes": max(
            (
                r["limit_peak_bytes"] + r["supervisor_bytes"]
                for r in phases
                if r["limit_peak_bytes"]
            ),
            default=0,
        ),
        "kills": sum(record["limit_kills"] for record in phases),
        "limits": sorted({record["layer"] for record in records if record["kind"] == "limit"}),
        "actions": sum(record["kind"] == "memory" for record in records),
        "restarts": len(restarts),
        "repeated_steps": max(repeated, default=0),
        "lost_steps": repeated[-1] if done["code"] and repeated else 0,
        "named": f"{error.get('remedy', '')}"[:200],
        "message": f"{error.get('message', '')}"[:300],
    }
    if done["code"] == 0:
        row["difference"] = difference(place, case.reference)
        row["chunk_changed"] = chunk_changed(place, records)
    for path in (place, Path(cache)) if drawn.fresh_cache else (place,):
        shutil.rmtree(path, ignore_errors=True)
    return row


def parameters(run_folder: Path) -> dict[str, np.ndarray]:
    """The tensors of a run's adapter."""
    stored = TensorFile(run_folder / "adapter.safetensors")
    return {name: stored[name] for name in stored}


def difference(run_folder: Path, reference: dict[str, np.ndarray]) -> float:
    """The largest difference of a parameter."""
    mine = parameters(run_folder)
    return max(float(np.abs(mine[name] - reference[name]).max()) for name in reference)


def chunk_changed(run_folder: Path, records: list[dict[str, Any]]) -> bool:
    """Whether steps were summed in another order than the reference's, at any time."""
    plan = json.loads((run_folder / "plan.json").read_text())["phases"]["train"]
    return plan.get("mode") != "fused" or any(
        record["kind"] == "chunk" or (record["kind"] == "restart" and record["phase"] == "train")
        for record in records
    )


def main() -> int:
    """Run the stress test, or show how far it came."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--case",
        action="append",
        default=[],
        metavar="BUNDLE:PICTURES",
        help="one that is given twice is drawn twice as often",
    )
    parser.add_argument("--runs", type=int, default=20, help="in all, those in --state included")
    parser.add_argument("--state", type=Path, help="one line a run; continued where it is there")
    parser.add_argument("--summary", action="store_true", help="show --state, run nothing")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--restarts", type=int, default=6, help="of a training's worker, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = load_lines(options.state)
    done = {row["number"] for row in rows}
    if not options.summary:
        with tempfile.TemporaryDirectory() as name:
            cases = prepare(options, Path(name))
            leasts = [case.least_bytes for case in cases]
            for number in (n for n in range(options.runs) if n not in done):
                drawn = draw(options.seed, number, leasts, options.steps)
                row = one(options, drawn, cases[drawn.case], Path(name))
                rows.append(row)
                print(number, row["code"], verdict(row), file=sys.stderr, flush=True)
                if options.state is not None:
                    add_lines(options.state, [row])
    print(json.dumps(rows) if options.json else summary(rows))
    return 0 if rows and all(verdict(row) == "kept" for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
