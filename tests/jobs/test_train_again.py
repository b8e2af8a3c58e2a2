"""`train` again after pictures and a class were added: what is new is computed, the last run begun
from, and both compared on the same pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from edgeladder.cli.app import main
from edgeladder.cli.previous import told
from edgeladder.core.bundle import Bundle
from edgeladder.core.config import HeadConfig
from edgeladder.core.request import TrainRequest
from edgeladder.core.run_list import pin_run
from edgeladder.core.tensors import TensorFile
from edgeladder.jobs.previous_run import with_previous


def answer(capfd, *arguments: str) -> tuple[int, dict]:
    capfd.readouterr()
    code = main([*arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


def add_class(folder: Path) -> None:
    random = np.random.default_rng(9)
    (folder / "added").mkdir()
    for index in range(6):
        pixels = random.integers(0, 120, (40, 44, 3), dtype=np.uint8)
        pixels[:20] += 100
        Image.fromarray(pixels).save(folder / "added" / f"{index}.png")


def test_a_class_more_is_a_class_more(bundle_folder, picture_folder, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told_of = ["--bundle", str(bundle_folder), "--data", str(picture_folder)]
    short = ["--set", "train.steps=3", "--budget", "1GB"]
    code, first = answer(capfd, "train", *told_of, *short, "--run", "runs/first")
    assert code == 0, first
    assert first["previous"] is None and first["cache"]["new"] == 24

    add_class(picture_folder)
    code, second = answer(capfd, "train", *told_of, *short, "--run", "runs/second")
    assert code == 0, second
    views = second["cache"]["new"] / 6  # the new class alone; training pictures with their views
    assert 1 <= views < 3
    previous = second["previous"]
    assert previous["run"] == "runs/first" and previous["note"] == "begun from runs/first"
    found = previous["comparison"]
    assert found["only_new"] == ["added"] and found["trained_on"] == 0
    assert found["count"] == first["accuracy"]["count"]
    # the old one is asked what it was asked at its own end
    assert abs(found["old"]["accuracy"] - first["accuracy"]["tuned"]) < 1e-9
    assert json.loads(Path("runs/second/comparison.json").read_text())["count"] == found["count"]

    _which_fit(bundle_folder, picture_folder)
    code, fresh = answer(capfd, "train", *told_of, *short, "--run", "runs/third", "--fresh")
    assert fresh["previous"] is None and fresh["cache"]["new"] == 0
    files = [TensorFile(f"runs/{run}/adapter.safetensors") for run in ("second", "third")]
    one, other = (dict(file.items()) for file in files)
    assert any(not np.array_equal(one[name], other[name]) for name in one)  # begun elsewhere


def _which_fit(bundle_folder: Path, pictures: Path) -> None:
    """What is begun from, and what is said where it does not fit."""
    bundle = Bundle.open(bundle_folder)
    profile = bundle.manifest.profile
    request = TrainRequest(data=str(pictures), previous="runs", run="runs/next")
    assert with_previous(request, bundle, profile).start == "runs/second"
    pin_run(Path("runs/first"))
    assert with_previous(request, bundle, profile).start == "runs/first"
    named = with_previous(replace(request, start="elsewhere"), bundle, profile)
    assert (named.start, named.previous, named.start_note) == ("elsewhere", "runs/first", "")
    head = HeadConfig(kind="gda", alone=True)
    alone = with_previous(request, bundle, replace(profile, head=head))
    assert alone.start is None and "head counts alone" in alone.start_note
    assert alone.previous == "runs/first"  # compared all the same
    other = replace(request, data=str(pictures / "class0"))
    assert with_previous(other, bundle, profile).previous is None
    assert with_previous(replace(request, resume=True), bundle, profile).start is None
    record = Path("runs/first/adapter.json")
    whole = record.read_text()
    record.write_text(whole.replace("class0", "class9"))
    assert "cannot be read" in with_previous(request, bundle, profile).start_note
    record.write_text(whole)


def test_a_better_old_run_is_said():
    comparison = {
        "old": {"run": "runs/first", "accuracy": 0.9, "correct": 9, "count": 10},
        "new": {"run": "runs/second", "accuracy": 0.8, "correct": 8, "count": 10},
        "count": 10, "better": "old", "p_value": 1.0, "mended": 0, "broken": 1,
        "new_classes": None, "trained_on": 0, "only_new": [],
    }  # fmt: skip
    values = {"run": "runs/first", "note": "begun from runs/first", "comparison": comparison}
    lines = told(values)
    assert lines[0] == "begun from runs/first"
    assert "old 90.0 % (59.6 to 98.2; 9 right)" in lines[1]
    assert lines[-1].startswith("warning: the old run was better; `edgeladder runs pin first`")
    comparison["better"] = "equal"
    assert not any("warning" in line for line in told(values))
    short = told({**values, "error": {"message": "does not fit"}})
    assert short[-1] == "not compared with runs/first: does not fit"
