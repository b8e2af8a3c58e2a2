"""`runs` and `compare` as they are typed: two adapters on the same pictures, under a budget."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgeladder.cli.app import main
from edgeladder.core.bundle import Bundle
from edgeladder.runtime.adapter import save_adapter
from edgeladder.runtime.cache.selection import Selection, stack_keys
from edgeladder.runtime.cache.store import sample_key
from tests.runtime.infer.conftest import an_adapter


@pytest.fixture
def two(tmp_path: Path, bundle_folder: Path, picture_folder: Path, monkeypatch) -> Path:
    """Two runs of random adapters below `runs/`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    request = {"bundle": str(bundle_folder), "data": str(picture_folder), "seed": 0, "shots": None}
    for seed, name in ((0, "old"), (3, "new")):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        save_adapter(run, an_adapter(Bundle.open(bundle_folder), seed))
        (run / "config.yaml").write_text(yaml.safe_dump({"request": request}))
    return tmp_path / "runs"


def answer(capfd, *arguments: str) -> tuple[int, dict]:
    capfd.readouterr()
    code = main([*arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


def test_compare_says_what_evaluate_says_of_both(two, picture_folder, capfd):
    code, found = answer(capfd, "compare", "old", "new")
    assert code == 0, found
    for name in ("old", "new"):
        _, alone = answer(capfd, "evaluate", "--run", f"runs/{name}")
        assert found[name]["accuracy"] == pytest.approx(alone["accuracy"])
        assert found["count"] == alone["count"]
    assert set(found["memory"]["phases"]) == {"judge_old", "judge_new"}
    assert all(d["old"]["label"] != d["new"]["label"] for d in found["differences"])
    same = answer(capfd, "compare", "old", "runs/old", "--data", str(picture_folder))[1]
    assert same["differences"] == [] and same["better"] == "equal"
    assert main(["compare", "old", "new"]) == 0
    assert "neither was trained on" in capfd.readouterr().out


def test_pictures_that_one_was_trained_on_are_left_out(two, picture_folder, capfd):
    import hashlib

    whole = answer(capfd, "compare", "old", "new", "--data", str(picture_folder))[1]
    seen = [p for p in sorted(picture_folder.glob("class1/*.png"))]
    keys = [sample_key(hashlib.sha256(path.read_bytes()).digest()) for path in seen]
    Selection(
        train_keys=stack_keys(keys)[None],
        train_labels=np.ones(len(keys), np.int32),
        test_keys=stack_keys([]),
        test_labels=np.zeros(0, np.int32),
        text_keys=stack_keys([]),
        classes=["class1"],
        class_names=["class1"],
        templates=[],
    ).save(two / "old" / "selection.safetensors")
    part = answer(capfd, "compare", "old", "new", "--data", str(picture_folder))[1]
    # the held-out ones of `new`: some of class1 are among them
    assert part["trained_on"] > 0
    assert part["count"] == whole["count"] - part["trained_on"]
    assert "class1" not in part["per_class"]


def test_runs_are_listed_pinned_and_removed(two, picture_folder, capfd):
    code, found = answer(capfd, "runs")
    assert code == 0 and {run["name"] for run in found["runs"]} == {"old", "new"}
    assert answer(capfd, "runs", "pin", "old")[1]["pinned"] == "runs/old"
    picture = str(next(picture_folder.glob("*/*.png")))
    pinned = answer(capfd, "predict", picture)[1]["predictions"]
    assert pinned == answer(capfd, "predict", picture, "--run", "runs/old")[1]["predictions"]
    code, refused = answer(capfd, "runs", "remove", "old")
    assert code == 2 and "pinned" in refused["error"]["message"]
    assert answer(capfd, "runs", "unpin")[1] == {"unpinned": True}
    assert answer(capfd, "runs", "remove", "old")[1]["freed_bytes"] > 0
    assert [run["name"] for run in answer(capfd, "runs")[1]["runs"]] == ["new"]
    assert answer(capfd, "runs", "remove", "nobody")[0] == 2
    assert main(["runs"]) == 0
    assert "accuracy" in capfd.readouterr().out


def test_a_bundle_that_is_gone_is_said(two, capfd):
    shutil.rmtree(two / "new")
    code, found = answer(capfd, "compare", "old", "new")
    assert code == 2 and "edgeladder runs" in found["error"]["remedy"]
