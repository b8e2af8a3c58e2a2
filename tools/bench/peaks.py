"""Planned against measured peaks of commands, over budgets, ways of a step, heads and threads.

    python tools/bench/peaks.py --case BUNDLE:PICTURES [--case ...] --state peaks.jsonl
    python tools/bench/peaks.py --state peaks.jsonl --show

Every row is `edgeladder train` as a bare supervisor runs it: with a cache of its own, so that
precompute is measured too, from the smallest budget that fits to one that leaves every choice free;
on a cache that is full, each way to compute a step and each kind of head. With one thread and two.
The plan's promise is an upper bound: measured never above planned, and at most 15 % below. Rows of
--state are not run again. Exit code 1 if a row breaks the promise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from edgeladder.jobs.run_directory import read_metrics  # noqa: E402

MB = 1_000_000
LEAST_SHARE = 0.85  # of planned that must be measured
_AMPLE = 4_000 * MB
_STEPS = 8
Row = dict[str, Any]
# share of the smallest budget that fits (None: ample), and what is asked for
_BUDGETS: tuple[Row, ...] = tuple({"share": share} for share in (1.0, 1.15, 1.4, 2.0, None))
_WAYS: tuple[Row, ...] = tuple(
    {"share": None, "mode": mode, "chunk": chunk, "set": sets}
    for mode, chunk, sets in (
        ("fused", None, ()),
        ("recompute", None, ()),
        ("chunked", 8, ()),
        ("chunked", 2, ("train.moments=int8",)),
        ("fused", None, ("train.batch=64", "train.average=0.9")),
    )
)
_HEADS: tuple[Row, ...] = tuple(
    {"share": None, "set": (f"head.kind={kind}", "head.weight=1")}
    for kind in ("gda", "kernel", "blend")
)
_VIEWS: tuple[Row, ...] = ({"share": None, "set": ("train.views=4",)},)


def grid(cases: list[str], threads: list[int], quick: bool) -> Iterator[Row]:
    """Configurations; `quick` leaves budgets only."""
    for case in cases:
        for count in threads:
            for config in _BUDGETS if quick else (*_BUDGETS, *_WAYS, *_HEADS, *_VIEWS):
                yield {"case": case, "threads": count, **config}


def ask(
    config: Row, folder: Path, cache: Path, budget: int
) -> tuple[dict[str, Any], list[Row], Row]:
    """A command's answer, its phases' records, and the plan's phases."""
    bundle, _, data = config["case"].partition(":")
    request = {
        "bundle": bundle,
        "data": data,
        "cache": str(cache),
        "run": str(folder / "run"),
        "budget_bytes": budget,
        "engine": "stock",
        "threads": config["threads"],
        "mode": config.get("mode"),
        "chunk": config.get("chunk"),
        "overrides": [f"train.steps={_STEPS}", *config.get("set", ())],
    }
    told = json.dumps({"command": "train", "json": True, "request": request})
    done = subprocess.run(
        [sys.executable, "-m", "edgeladder.jobs", told],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
    )  # fmt: skip
    answer = json.loads(done.stdout)
    if done.returncode:
        return answer, [], {}
    records = [r for r in read_metrics(folder / "run" / "metrics.jsonl") if r["kind"] == "phase"]
    plan = json.loads((folder / "run" / "plan.json").read_text())
    return answer, records, plan["phases"]


def least_budget(case: str, folder: Path) -> int:
    """The smallest budget that a refusal names."""
    answer, _, _ = ask({"case": case, "threads": 1}, folder, folder / "cache", MB)
    return int(answer["error"]["minimum_budget_bytes"])


def rows_of(config: Row, budget: int, filled: Path) -> Iterator[Row]:
    """One configuration run: a row of each phase; precompute's where it had something to do."""
    fresh = "mode" not in config and "set" not in config
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name) / "cache" if fresh else filled
        answer, records, phases = ask(config, Path(name), cache, budget)
    if "error" in answer:
        yield {**config, "budget_bytes": budget, "phase": "-", "error": answer["error"]["message"]}
        return
    for record in records:
        if record["phase"] == "precompute" and not answer["cache"]["new"]:
            continue
        phase = phases[record["phase"]]
        yield {
            **config,
            "budget_bytes": budget,
            "phase": record["phase"],
            "planned_bytes": phase["planned_peak_bytes"],
            "measured_bytes": record["measured_peak_bytes"],
            "sampled_bytes": record["sampled_peak_bytes"],
            "high_water_bytes": record["worker_high_water_bytes"],
            "sizes": _sizes(phase),
            "parts": phase["parts"],
        }


def _sizes(phase: Row) -> str:
    """What the plan chose, in a few words."""
    if "whole" in phase:
        return f"{'whole' if phase['whole'] else 'streamed'}, batch {phase['batch']}"
    if "mode" in phase:
        words = [phase["mode"], phase["moments"], "arena" if phase["arena"] else "no arena"]
        return ", ".join(words + ([f"chunk {phase['chunk']}"] if "chunk" in phase else []))
    head = phase.get("head_pictures")
    return f"chunk {phase['chunk']}" + (f", head on {head}" if head else "")


def share(row: Row) -> float:
    """Measured over planned."""
    return float(row["measured_bytes"] / row["planned_bytes"])


def kept(row: Row) -> bool:
    """Whether a row keeps the promise."""
    return "error" not in row and LEAST_SHARE <= share(row) <= 1


def table(rows: list[Row]) -> str:
    """Rows as Markdown, those that break the promise marked."""
    heads = ["bundle", "budget MB", "threads", "asked", "phase", "sizes"]
    heads += ["planned MB", "measured MB", "measured / planned"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for row in rows:
        asked = ", ".join([*([row["mode"]] if row.get("mode") else []), *row.get("set", ())])
        bundle = Path(row["case"].partition(":")[0]).resolve()
        cells = [bundle.parent.name.strip("_") if bundle.name == "bundle" else bundle.name]
        cells += [f"{row['budget_bytes'] / MB:.0f}", str(row["threads"]), asked, row["phase"]]
        if "error" in row:
            cells += [row["error"], "", "", ""]
        else:
            cells += [row["sizes"], f"{row['planned_bytes'] / MB:.1f}"]
            cells += [f"{row['measured_bytes'] / MB:.1f}"]
            cells += [f"{share(row):.2f}" + ("" if kept(row) else " (broken)")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run what is not in the state yet, or show it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", action="append", default=[], metavar="BUNDLE:PICTURES")
    parser.add_argument("--threads", type=int, action="append", help="default: 1 and 2")
    parser.add_argument("--state", type=Path, required=True, help="one line a row")
    parser.add_argument("--quick", action="store_true", help="budgets only")
    parser.add_argument("--show", action="store_true", help="show --state, run nothing")
    options = parser.parse_args()
    rows: list[Row] = list(read_metrics(options.state)) if options.state.is_file() else []
    least: dict[str, int] = {}
    with contextlib.ExitStack() as scratch:
        done = {_key(row) for row in rows}
        filled = Path(scratch.enter_context(tempfile.TemporaryDirectory()))
        for config in grid(options.case, options.threads or [1, 2], options.quick):
            if options.show or _key(config) in done:
                continue
            case = config["case"]
            if config["share"] and case not in least:
                with tempfile.TemporaryDirectory() as name:
                    least[case] = least_budget(case, Path(name))
            budget = int(config["share"] * least[case]) if config["share"] else _AMPLE
            for row in rows_of(config, budget, filled / f"{options.case.index(case)}"):
                rows.append(row)
                print(table([row]).splitlines()[-1], file=sys.stderr, flush=True)
                with options.state.open("a") as stream:
                    stream.write(json.dumps(row) + "\n")
    print(table(rows))
    return 0 if rows and all(map(kept, rows)) else 1


def _key(config: Row) -> str:
    names = ("case", "threads", "share", "mode", "chunk")
    return json.dumps([*(config.get(name) for name in names), list(config.get("set", ()))])


if __name__ == "__main__":
    sys.exit(main())
