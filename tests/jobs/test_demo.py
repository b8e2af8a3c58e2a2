"""The demo: what ships, start to end, in a fresh process inside its budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgeladder
from edgeladder import demo
from edgeladder.budget.policy import DEMO_BYTES
from edgeladder.core.errors import IntegrityError
from edgeladder.core.inference import Compared
from edgeladder.runtime.deployment import deploy


def test_the_demo_learns_inside_its_budget(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", "from edgeladder.cli.app import run; run()", "demo", "--json",
         "--out", "run"],
        env={**os.environ, "PYTHONPATH": str(Path(edgeladder.__file__).parents[1])},
        capture_output=True, text=True, cwd=tmp_path, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    accuracy = values["accuracy"]
    assert accuracy["zero_shot"] > 0.3  # ten classes; chance is 0.1
    assert accuracy["tuned"] > accuracy["zero_shot"]
    phases = values["memory"]["phases"]
    assert {"precompute", "train", "evaluate"} <= set(phases)
    for phase in phases.values():
        assert phase["measured_peak_bytes"] <= DEMO_BYTES
    assert (tmp_path / values["report"]).is_file()
    # its head's logits reach hundreds, and the file's agree with them to a share of that
    deployed = deploy(tmp_path / values["run"], tmp_path / "model.onnx")
    assert deployed.compared == Compared(pictures=8, origin="data")
    assert deployed.difference < 0.05


SMALL = """
import sys
from edgeladder import demo
demo.DEMO_BYTES, demo.SHOTS = 90_000_000, 1
from edgeladder.cli.app import run
sys.argv[1:] = ["demo", "--json", "--out", "run", *sys.argv[1:]]
run()
"""


def test_a_larger_python_gets_what_it_needs_unless_a_budget_is_named(tmp_path: Path):
    def tried(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", SMALL, *words], cwd=tmp_path, timeout=600,
            env={**os.environ, "PYTHONPATH": str(Path(edgeladder.__file__).parents[1])},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    refused = tried("--budget", "90MB")
    assert refused.returncode == 3
    least = json.loads(refused.stdout)["error"]["minimum_budget_bytes"]
    done = tried()
    assert done.returncode == 0, done.stderr
    assert "this Python needs a budget of " in done.stderr
    memory = json.loads(done.stdout)["memory"]
    assert abs(memory["budget_bytes"] - least) < 5_000_000
    peaks = [phase["measured_peak_bytes"] for phase in memory["phases"].values()]
    assert max(peaks) <= memory["budget_bytes"]


def test_a_package_without_its_model_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(demo, "NANO_BUNDLE", tmp_path)
    with pytest.raises(IntegrityError, match="came without manifest.json"):
        demo.run_demo(out=tmp_path / "run")


def test_the_screen_tells_accuracy_memory_and_where_the_report_lies():
    text = demo.say(
        {
            "accuracy": {"zero_shot": 0.5, "tuned": 0.75, "split": "test", "count": 120},
            "memory": {
                "budget_bytes": 160_000_000,
                "enforcement": "rlimit",
                "phases": {
                    "train": {
                        "measured_peak_bytes": 120_000_000,
                        "planned_peak_bytes": 130_000_000,
                    }
                },
            },
            "steps": 7,
            "seconds": 12.5,
            "engine": "stock",
            "run": "runs/demo",
            "report": "runs/demo/report.html",
        }
    )
    for piece in ("50.0 %", "75.0 %", "120 MB", "160 MB", "runs/demo/report.html", "12.5 s"):
        assert piece in text
