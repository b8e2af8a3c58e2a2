#!/usr/bin/env python3
"""What EdgeLadder computes, as SHA-256 sums: the same before a change and after it.

    python -m tools.bench.referee --out sums.json                # this tree
    python -m tools.bench.referee --against sums.json            # compare; 1: something differs
    python -m tools.bench.referee --tree OTHER --out sums.json   # another checkout
    python -m tools.bench.referee --against sums.json --profiles default      # a part, sooner

On nano and its pictures: five bundles (profiles default, prompt-ladder, qprompt, condensation,
memvp), their caches, one cache made segment by segment, ten runs (each profile on the stock engine,
three on onnxruntime-training, one killed and resumed, one chunked by a small budget), what
`evaluate` and `predict` say of two of them, and two deployed files. It goes by commands and files
alone, and sums values, not names: the rooms of the package and the names of tensors may change.

Sums hold for one machine and one set of packages: take both sides on the same. --host-python
(edgeladder[host,ort-training]) exports the bundles; --device-python does everything else, needs
both engines and should hold no torch. It took ten minutes on two cores shared with other work.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tools.bench import sums
from tools.bench.court import (
    THREADS,
    Court,
    Failure,
    describe,
    kill_after,
    sets,
    squares,
    unpack_pictures,
)

Task = Callable[[], dict[str, Any]]

ROOT = Path(__file__).resolve().parents[2]
AMPLE = "2GB"  # nothing is made smaller to fit
STEPS = 30
SETTINGS = [f"train.steps={STEPS}", "train.checkpoint_steps=5", "train.seed=0"]


@dataclass(frozen=True)
class Recipe:
    """One profile as it is exported and trained on nano."""

    engines: tuple[str, ...]
    dtype: str = "fp32"  # of the towers on disk
    export: tuple[str, ...] = ()  # settings at export
    train: tuple[str, ...] = ()  # settings of the training


RECIPES = {
    "default": Recipe(("stock", "ort-training")),
    # the paper's blocks 0, 5, 10 are of a deeper tower
    "prompt-ladder": Recipe(("stock",), dtype="int8", export=("ladder.taps.blocks=[0,1,2]",)),
    "qprompt": Recipe(("stock", "ort-training")),
    "condensation": Recipe(("stock",), train=("condense.epochs=2",)),
    "memvp": Recipe(("stock", "ort-training"), dtype="fp16"),
}
JUDGED = ("default", "prompt-ladder")  # with a head, and without: evaluate, predict, deploy
PICTURES = ("test/hat/00.jpg", "test/shirt/03.jpg", "test/skirt/05.jpg")

KILLED_AFTER = 12  # steps: past two checkpoints, and not at one
# The chunked run: every picture in VIEWS and all in one batch, so that one step is larger than
# the budgets below. Which budget gives these chunks is the planner's affair, so it is asked.
CHUNK, CHUNKED_STEPS = 128, 3
BARE = ["head.kind=none", "head.weight=null", "head.full_at=null"]
CHUNKED = [
    f"train.steps={CHUNKED_STEPS}",
    "train.batch=640",
    "train.moments=fp32",
    "train.seed=0",
    *BARE,
]
BUDGETS_MB = (155, 160, 150, 165, 145, 170, 175, 140, 180, 185, 190, 135, 200, 210, 220, 130, 120)
SEGMENTS_MB = 145  # about here the towers go segment by segment; the nearest is tried first
SHRINKING = ("halve", "restart", "kill")


# -- what is judged -----------------------------------------------------------------------------


def judge_profile(court: Court, name: str) -> dict[str, Any]:
    """Export a profile, fill its cache, train it on its engines."""
    recipe = RECIPES[name]
    bundle, cache = (court.work / f"{word}-{name}" for word in ("bundle", "cache"))
    engine = "all" if "ort-training" in recipe.engines else "stock"
    court.ask(
        "export", "--model", "nano", "--profile", name, "--dtype", recipe.dtype, "--engine", engine,
        *sets(list(recipe.export)), "--out", bundle, host=True,
    )  # fmt: skip
    place = ["--bundle", bundle, "--data", court.data, "--cache", cache, "--budget", AMPLE]
    court.ask("precompute", *place)
    runs = {}
    for engine in recipe.engines:
        run = court.work / f"run-{name}-{engine}"
        settings = [*SETTINGS, *recipe.train]
        court.ask("train", *place, *sets(settings), "--engine", engine, "--run", run)
        runs[f"{name}, {engine}"] = sums_of_run(run)
    return {
        "bundles": {name: {"initial": sums.sum_of_file(bundle / "ladder" / "init.safetensors")}},
        "caches": {name: sums.sums_of_cache(cache)},
        "runs": runs,
    }


def sums_of_run(run: Path) -> dict[str, Any]:
    """What a run learnt: its adapter (head and all), every step's loss, and how good it is."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # a resumed run repeats the steps after its checkpoint: the last of each counts
    losses = {record["step"]: record["loss"] for record in records if record["kind"] == "step"}
    result = json.loads((run / "result.json").read_text())
    return {
        "adapter": sums.sum_of_file(run / "adapter.safetensors"),
        "losses": sums.sum_of_text(repr(sorted(losses.items()))),
        "steps": result["steps"],
        "zero_shot": result["accuracy"]["zero_shot"],
        "tuned": result["accuracy"]["tuned"],
    }


def judge_resumed(court: Court) -> dict[str, Any]:
    """The default profile's run, killed with all its processes in the middle and resumed."""
    run = court.work / "run-resumed"
    place = ["--bundle", court.work / "bundle-default", "--data", court.data, "--budget", AMPLE]
    place += ["--cache", court.work / "cache-default", "--engine", "stock", "--run", run]
    steps = kill_after(court, court.command("train", *place, *sets(SETTINGS)), run, KILLED_AFTER)
    if steps >= STEPS:
        raise Failure(f"{run} had done all {steps} steps before it could be killed")
    result = court.ask("train", "--resume", run)
    if not result["resumed_from"]:
        raise Failure(f"{run} was killed after step {steps}, but did not resume from a checkpoint")
    court.notes["killed"] = {"after_step": steps, "resumed_from": result["resumed_from"]}
    resumed, whole = sums_of_run(run), sums_of_run(court.work / "run-default-stock")
    if resumed != whole:
        said = "\n".join(sums.differences(whole, resumed))
        raise Failure(f"the resumed run is not the one that was never killed:\n{said}")
    return {"runs": {"default, stock, killed and resumed": resumed}}


def judge_chunked(court: Court) -> dict[str, Any]:
    """A batch of 640 under a budget that takes it 128 pictures at a time."""
    bundle = court.work / "bundle-default"
    place = ["--bundle", bundle, "--data", court.work / "views"]
    place += ["--cache", court.work / "cache-views"]
    options = [*sets(CHUNKED), "--engine", "stock"]
    court.ask("precompute", *place, "--budget", AMPLE)
    for budget in BUDGETS_MB:
        within = [*place, *options, "--budget", f"{budget}MB"]
        planned = court.ask("plan", *within, codes=(0, 3))
        if not planned["fits"] or planned["phases"]["train"].get("chunk") != CHUNK:
            continue
        run = court.work / f"run-chunked-{budget}"
        memory = court.ask("train", *within, "--run", run)["memory"]
        if not shrunk(memory):
            court.notes["chunked"] = {"budget_mb": budget, "chunk": CHUNK}
            return {
                "runs": {f"default, stock, chunked by {CHUNK}": sums_of_run(run)},
                "caches": {"default, four views": sums.sums_of_cache(court.work / "cache-views")},
            }
    raise Failure(f"no budget of {sorted(BUDGETS_MB)} MB trains in chunks of {CHUNK}")


def judge_segments(court: Court) -> dict[str, Any]:
    """The default profile's cache once more, one segment and one picture at a time."""
    place = ["--bundle", court.work / "bundle-default", "--data", court.data]
    options = [*sets([*BARE, "train.steps=1", "train.seed=0"]), "--engine", "stock"]
    for budget in sorted(BUDGETS_MB, key=lambda budget: abs(budget - SEGMENTS_MB)):
        run, cache = (court.work / f"{word}-segments-{budget}" for word in ("run", "cache"))
        within = [*place, *options, "--cache", cache, "--budget", f"{budget}MB"]
        if not by_segments(court.ask("plan", *within, codes=(0, 3))):
            continue
        # `train`, not `precompute`: it says in plan.json what it did
        memory = court.ask("train", *within, "--run", run)["memory"]
        if by_segments(json.loads((run / "plan.json").read_text())) and not shrunk(memory):
            court.notes["segments"] = {"budget_mb": budget}
            return {"caches": {"default, by segments": sums.sums_of_cache(cache)}}
    raise Failure(f"no budget of {sorted(BUDGETS_MB)} MB runs the towers segment by segment")


def by_segments(planned: dict[str, Any]) -> bool:
    """Whether a plan that fits takes the towers apart and one picture at a time."""
    sizes = planned["phases"]["precompute"]
    return bool(planned["fits"] and sizes.get("group") and sizes["batch"] == 1)


def shrunk(memory: dict[str, Any]) -> bool:
    """Whether a run had to go on with smaller sizes than planned."""
    return any(action["action"] in SHRINKING for action in memory["actions"])


def judge_answers(court: Court, name: str) -> dict[str, Any]:
    """What a run's `evaluate` and `predict` say, and its deployed file."""
    run, out = court.work / f"run-{name}-stock", court.work / f"{name}.onnx"
    evaluated = court.ask("evaluate", "--run", run)
    paths = [court.data / picture for picture in PICTURES]
    predicted = court.ask("predict", "--run", run, "--top", "10", *paths)["predictions"]
    said = [
        f"{Path(item['path']).name} {label['label']} {label['probability']:.6f}"
        for item in predicted
        for label in sorted(item["labels"], key=lambda label: str(label["label"]))
    ]
    court.ask("deploy", "--run", run, "--out", out)
    return {
        "evaluate": {
            name: {
                "accuracy": evaluated["accuracy"],
                "zero_shot_accuracy": evaluated["zero_shot_accuracy"],
                "confusion": sums.sum_of_text(json.dumps(evaluated["confusion"], sort_keys=True)),
            }
        },
        "predict": {name: sums.sum_of_text("\n".join(said))},
        "deploy": {name: sums.sums_of_deployed(out, squares(paths))},
    }


# -- the whole ----------------------------------------------------------------------------------


def judge(court: Court, profiles: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Every sum, and what failed; two things at a time, because most of them use one core."""
    unpack_pictures(court)
    first: list[Task] = [partial(judge_profile, court, name) for name in profiles]
    then: list[Task] = []
    if "default" in profiles:  # theirs is its bundle
        then += [partial(part, court) for part in (judge_chunked, judge_resumed, judge_segments)]
    then += [partial(judge_answers, court, name) for name in JUDGED if name in profiles]
    found: dict[str, Any] = {}
    failures: list[str] = []
    with ThreadPoolExecutor(2) as pool:
        for stage in (first, then):
            for part in pool.map(_tried, stage):
                if isinstance(part, str):
                    failures.append(part)
                    continue
                for room, values in part.items():
                    found.setdefault(room, {}).update(values)
    return found, failures


def _tried(task: Task) -> dict[str, Any] | str:
    """What a task found, or why it failed: the others are judged all the same."""
    try:
        return task()
    except (Failure, OSError, LookupError, TypeError, ValueError) as error:
        said = str(error) if isinstance(error, Failure) else repr(error)
        print(f"error: {said}", file=sys.stderr, flush=True)
        return said


def compare(known: dict[str, Any], found: dict[str, Any], path: Path, partly: bool) -> int:
    """Print every difference, of all that was found or of all there is; the exit code."""
    lines = sums.differences(known, found)
    if partly:
        lines = [line for line in lines if not line.endswith(sums.ABSENT)]
    for line in lines:
        print(line)
    print(f"{len(lines)} differ from {path}" if lines else f"no difference from {path}")
    return 1 if lines else 0


def main() -> int:
    """Judge a tree; 0, 1 where something differs, 2 where a command failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file to write the sums to")
    parser.add_argument("--against", type=Path, help="sums to compare with; exit 1 if any differs")
    parser.add_argument("--tree", type=Path, default=ROOT, help="checkout to judge [this one]")
    parser.add_argument("--host-python", default=sys.executable, help="exports [this interpreter]")
    parser.add_argument("--device-python", default=sys.executable, help="the rest [this one]")
    parser.add_argument(
        "--work", type=Path, help="new folder to work in and keep [a temporary one]"
    )
    parser.add_argument(
        "--profiles", nargs="+", choices=RECIPES, default=list(RECIPES), help="only these [all]"
    )
    options = parser.parse_args()
    known = json.loads(options.against.read_text()) if options.against else None
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="referee-") as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        try:
            court = Court(options.tree.resolve(), options.host_python, options.device_python, work)
        except Failure as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 2
        found, failures = judge(court, options.profiles)
    record = {**describe(court, time.monotonic() - began), "sums": found, "failures": failures}
    text = json.dumps(record, indent=2, sort_keys=True) + "\n"
    if options.out:
        options.out.write_text(text)
    code = 0
    if known is not None:
        partly = bool(failures) or len(options.profiles) < len(RECIPES)
        code = compare(known["sums"], found, options.against, partly)
    elif not options.out:
        print(text, end="")
    return 2 if failures else code


if __name__ == "__main__":
    sys.exit(main())
