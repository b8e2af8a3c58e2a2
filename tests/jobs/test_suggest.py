"""`suggest` as it is typed: no label yet, beside labels, with a run; sorted pictures taken in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from edgeladder.cli.app import main
from edgeladder.core.bundle import Bundle
from edgeladder.runtime.adapter import save_adapter
from tests.runtime.infer.conftest import an_adapter


def answer(capfd, *arguments: str) -> tuple[int, dict]:
    capfd.readouterr()
    code = main([*arguments, "--json"])
    return code, json.loads(capfd.readouterr().out)


@pytest.fixture
def place(tmp_path: Path, bundle_folder: Path, picture_folder: Path, monkeypatch) -> list[str]:
    """24 pictures in `data/unlabelled`, and nothing else yet."""
    monkeypatch.chdir(tmp_path)
    waiting = tmp_path / "data" / "unlabelled"
    waiting.mkdir(parents=True)
    for path in picture_folder.glob("*/*.png"):
        shutil.copy(path, waiting / f"{path.parent.name}-{path.name}")
    return ["--bundle", str(bundle_folder)]


def test_from_no_label_to_a_run_that_is_unsure(place, bundle_folder, tmp_path, capfd):
    code, found = answer(capfd, "suggest", "6", *place, "--out", "sort", "--page", "s.html")
    assert code == 0, found
    assert found["unlabelled"] == 24 and found["labelled"] == 0 and found["run"] is None
    assert {item["reason"] for item in found["pictures"]} == {"covers"}
    assert sum(item["stands_for"] for item in found["pictures"]) == 24
    assert "data:image/jpeg" in Path("s.html").read_text()
    for link in sorted(Path("sort").glob("0*")):
        label = Path("sort") / link.name[4:10]
        label.mkdir(exist_ok=True)
        link.rename(label / link.name)
    code, taken = answer(capfd, "suggest", "--take", "sort")
    assert code == 0 and len(taken["taken"]) == 6, taken
    assert len(list(Path("data").glob("class*/*.png"))) == 6

    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    save_adapter(run, an_adapter(Bundle.open(bundle_folder)))
    (run / "config.yaml").write_text(yaml.safe_dump({"request": {"bundle": str(bundle_folder)}}))
    code, found = answer(capfd, "suggest", "2", *place)
    assert code == 0, found
    assert found["new"] == 0 and found["labelled"] == 6 and found["unlabelled"] == 18
    assert Path(found["run"]).name == "one"
    assert {item["reason"] for item in found["pictures"]} == {"uncertain"}
    assert all(item["guess"] in ("class0", "class1", "class2") for item in found["pictures"])
    peak = found["memory"]["phases"]["suggest"]
    assert peak["measured_peak_bytes"] <= 1.1 * peak["planned_peak_bytes"]


def test_what_is_missing_or_too_small_is_said(place, capfd):
    assert answer(capfd, "suggest", "2", *place, "--unlabelled", "nowhere")[0] == 2
    assert answer(capfd, "suggest", "--take", "nowhere")[0] == 2
    code, found = answer(capfd, "suggest", "2", *place, "--budget", "50MB")
    assert code == 3 and found["error"]["minimum_budget_bytes"]
