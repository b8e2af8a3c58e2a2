"""The main job on a device: the wheel in a fresh environment without torch, real commands."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import make_pictures


class Box:
    """A folder on a device, with a bundle, pictures and the installed command."""

    def __init__(self, environment: Path, folder: Path):
        self.environment = environment
        self.folder = folder

    def __call__(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        done = subprocess.run(
            [self.environment / "bin" / "edgeladder", *arguments, "--json"],
            capture_output=True, text=True, check=False, cwd=self.folder,
        )  # fmt: skip
        assert done.returncode == code, done.stderr + done.stdout
        answer = json.loads(done.stdout)
        assert isinstance(answer, dict)
        return answer


@pytest.fixture(scope="module")
def box(install, bundle_folder, tmp_path_factory) -> Box:
    folder = tmp_path_factory.mktemp("box")
    (folder / "bundle").symlink_to(bundle_folder)
    make_pictures(folder / "data")
    return Box(install(), folder)


@pytest.fixture(scope="module")
def trained(box) -> dict[str, Any]:
    return box(
        "train", "--device", "jetson-orin", "--budget", "2GB", "--shots", "4", "--engine", "stock",
        "--run", "runs/first", "--set", "train.epochs=2", "--set", "train.batch=4",
    )  # fmt: skip


def test_there_is_neither_torch_nor_onnx(box):
    python = box.environment / "bin" / "python"
    for module in ("torch", "onnx", "open_clip", "scipy"):
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec('{module}') is None)"
        assert subprocess.run([python, "-c", code], check=False).returncode == 1, module


def test_doctor_replays_the_golden_steps(box):
    found = box("doctor", "--bundle", "bundle")
    assert found["healthy"], found
    assert "golden steps" in [check["name"] for check in found["checks"]]


def test_the_shipped_library_is_there(box):
    assert "jetson-orin" in [item["name"] for item in box("devices")["devices"]]
    assert "default" in [item["name"] for item in box("profiles")["profiles"]]


def test_plan(box):
    planned = box("plan", "--budget", "2GB")
    assert planned["fits"]
    assert 0 < planned["minimum_budget_bytes"] <= 2_000_000_000
    assert set(planned["phases"]) >= {"precompute", "train", "evaluate"}

    refused = box("plan", "--budget", "20MB", code=3)
    assert not refused["fits"]
    assert refused["minimum_budget_bytes"] > 20_000_000


def test_a_budget_too_small_is_refused_before_the_start(box):
    refused = box("train", "--budget", "20MB", "--run", "runs/small", code=3)["error"]
    assert refused["type"] == "BudgetError"
    assert refused["remedy"]
    assert not (box.folder / "runs" / "small").exists()


def test_precompute_does_only_what_is_new(box):
    first = box("precompute", "--cache", "cache-2", "--budget", "2GB")
    assert (first["new"], first["reused"]) == (24, 0)
    second = box("precompute", "--cache", "cache-2", "--budget", "2GB")
    assert (second["new"], second["reused"]) == (0, 24)


def test_train_answers_what_the_design_promises(box, trained):
    assert trained["run"] == "runs/first"
    assert trained["engine"] == "stock"
    assert trained["steps"] > 0
    assert trained["skipped_inputs"] == []
    assert trained["resumed_from"] is None
    assert set(trained["accuracy"]) >= {"zero_shot", "tuned", "split"}
    assert trained["memory"]["budget_bytes"] == 2_000_000_000
    assert trained["memory"]["enforcement"]
    for phase in ("precompute", "train", "evaluate"):
        peaks = trained["memory"]["phases"][phase]
        assert 0 < peaks["measured_peak_bytes"] <= 2_000_000_000
        assert peaks["planned_peak_bytes"] > 0
    for key in ("precompute_images_per_second", "train_images_per_second", "step_ms_median"):
        assert trained["throughput"][key] > 0


def test_a_run_is_a_directory(box, trained):
    run = box.folder / trained["run"]
    for name in (
        "config.yaml", "plan.json", "environment.json", "metrics.jsonl", "adapter.safetensors",
        "adapter.json", "result.json",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    assert not (run / "checkpoints").exists()  # only an unfinished run needs them
    assert "train: done" in (run / "worker.log").read_text()


def test_evaluate(box, trained):
    answer = box("evaluate", "--run", trained["run"])
    assert answer["count"] > 0
    assert answer["accuracy"] == pytest.approx(trained["accuracy"]["tuned"])
    assert answer["zero_shot_accuracy"] == pytest.approx(trained["accuracy"]["zero_shot"])
    assert len(answer["confusion"]) == 3
    assert len(answer["per_class"]) == 3


def test_predict(box, trained):
    picture = box.folder / "data" / "class0" / "picture0.png"
    broken = box.folder / "broken.png"
    broken.write_bytes(b"not a picture")
    answer = box("predict", str(picture), str(broken), "--run", trained["run"], "--top", "3")
    good, bad = answer["predictions"]
    assert [good["path"], bad["path"]] == [str(picture), str(broken)]
    assert sum(item["probability"] for item in good["labels"]) == pytest.approx(1, abs=1e-3)
    assert good["error"] is None
    assert bad["labels"] == []
    assert bad["error"]


def test_report_and_deploy(box, trained):
    report = Path(box("report", "--run", trained["run"])["report"])
    assert (box.folder / report).read_text().lstrip().lower().startswith("<!doctype html>")
    box("deploy", "--run", trained["run"], "--out", "model.onnx")
    assert (box.folder / "model.onnx").stat().st_size > 10_000


def test_export_says_where_it_belongs(box):
    refused = box("export", "--model", "ViT-B/16", code=2)["error"]
    assert "pip install 'edgeladder[host]'" in refused["remedy"]
