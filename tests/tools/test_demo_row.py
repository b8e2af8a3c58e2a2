"""The table of tools/pythons and tools/arm64."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tools import demo_row

TOOL = Path(demo_row.__file__)
ANSWER = {
    "accuracy": {"zero_shot": 0.5, "tuned": 0.675},
    "memory": {
        "budget_bytes": 160_000_000,
        "enforcement": "cgroup2",
        "phases": {
            "precompute": {"planned_peak_bytes": 140_000_000, "measured_peak_bytes": 130_000_000},
            "train": {"planned_peak_bytes": 120_000_000, "measured_peak_bytes": 110_000_000},
        },
    },
    "seconds": 30.2,
    "steps": 200,
}


def test_a_row_has_a_cell_for_every_head(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(ANSWER))
    lines = [
        subprocess.run(
            [sys.executable, TOOL, *told, "3.13.0"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for told in (["--header"], [path])
    ]
    (head, rule), (row,) = lines
    assert head.count("|") == rule.count("|") == row.count("|")
    assert row == "| 3.13.0 | 50.0 % | 67.5 % | 30 | 200 | 130 | 140 | 160 MB | cgroup2 |"
