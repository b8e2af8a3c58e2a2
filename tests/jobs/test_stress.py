"""Twenty trainings under random budgets with a leak and a balloon; a thousand are the script's."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tools.bench.result_rows import load_lines
from tools.bench.stress_budget import draw, one, prepare
from tools.bench.stress_summary import Row, summary, verdict

MB = 1_000_000
RUNS = 20
KEPT: Row = {
    "number": 0, "budget_bytes": 100, "sampled_bytes": 90, "kernel_bytes": 99, "code": 0,
    "difference": 0.0, "chunk_changed": False, "lost_steps": 0, "named": "", "samples": 5,
    "actions": 1, "restarts": 0, "kills": 0, "fresh_cache": False, "limits": ["cgroup1"],
}  # fmt: skip


def test_twenty_budgets_are_kept(bundle_folder: Path, picture_folder: Path, tmp_path: Path) -> None:
    """By both figures; what ends early names a budget, what ends well is the unconstrained run."""
    options = argparse.Namespace(
        case=[f"{bundle_folder}:{picture_folder}"], threads=1, shots=4, steps=12, restarts=3
    )
    (case,) = prepare(options, tmp_path)
    rows = [
        one(options, draw(1, number, [case.least_bytes], options.steps), case, tmp_path)
        for number in range(RUNS)
    ]
    assert [verdict(row) for row in rows] == ["kept"] * RUNS, summary(rows)
    # budgets, leaks and balloons that did something: else nothing was tried
    assert {row["code"] for row in rows} == {0, 3} and sum(row["restarts"] for row in rows)


def test_a_run_does_what_its_number_says_whatever_was_run_before() -> None:
    leasts = [100 * MB, 130 * MB]
    drawn = [draw(7, number, leasts, 20) for number in range(40)]
    assert drawn[11] == draw(7, 11, leasts, 20) != draw(8, 11, leasts, 20)
    for it in drawn:
        least = leasts[it.case]
        assert least <= it.budget_bytes <= 2 * least
        assert (it.leak_bytes * 20 > 2 * it.budget_bytes) is (it.number % 4 == 3)
        assert it.fresh_cache is (it.number % 5 == 0)


def test_every_broken_promise_is_seen(tmp_path: Path) -> None:
    broken = {
        "passed by the sampled figure": {"sampled_bytes": 101},
        "passed by the kernel's figure": {"kernel_bytes": 101},
        "exit code 1": {"code": 1},
        "a refusal that names no budget": {"code": 3},
        "more than a step lost": {"code": 3, "named": "--budget 9MB", "lost_steps": 2},
        "a wrong result": {"difference": 1e-7},
    }
    rows = [KEPT, {**KEPT, "chunk_changed": True, "difference": 1e-5}]
    assert [verdict(row) for row in rows] == ["kept", "kept"]
    for said, change in broken.items():
        rows.append({**KEPT, **change})
        assert verdict(rows[-1]) == said
    told = summary(rows)
    assert "| runs | 8 |" in told and told.count("budget 0 MB") == len(broken)
    state = tmp_path / "state.jsonl"
    state.write_text(json.dumps(KEPT) + "\n" + json.dumps(KEPT)[:20])  # killed while it wrote
    assert load_lines(state) == [KEPT]
