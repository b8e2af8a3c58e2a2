"""A real picture that ends whoever decodes it: named with its reason, and the rest is answered."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from edgeladder.core.bundle import Bundle
from edgeladder.core.inference import Evaluation, InferenceRequest, Predictions
from edgeladder.core.review import Review
from edgeladder.core.suggestion import Suggestions
from edgeladder.jobs.inference import run_inference
from edgeladder.runtime.adapter import save_adapter
from edgeladder.runtime.pictures.decode_watch import ENDED
from edgeladder.runtime.prediction import predict
from tests.conftest import make_pictures
from tests.runtime.data.test_decode_cost import tiled
from tests.runtime.infer.conftest import an_adapter

BUDGET = 400_000_000
# headers say what decoding takes, and such a picture is refused unopened: workers here do not ask
CARELESS = """
import sys
if "edgeladder.jobs.worker" in sys.orig_argv:
    import edgeladder.runtime.pictures.decode_cost as cost
    cost.decode_bytes = lambda *_, **__: 0
"""
FALLS = (
    CARELESS
    + """
import os, signal
if "edgeladder.jobs.worker" in sys.orig_argv:
    from PIL import TiffImagePlugin
    TiffImagePlugin.TiffImageFile.load = lambda self: os.kill(os.getpid(), signal.SIGSEGV)
"""
)


def workers(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes run `code` when they start."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """24 pictures; `class1/bomb.tif`, of 64 x 64 pixels, takes 324 MB."""
    folder = make_pictures(tmp_path / "data")
    (folder / "class1" / "bomb.tif").write_bytes(tiled(18_000))
    return folder


@pytest.fixture
def run_folder(tmp_path: Path, bundle_folder: Path) -> Path:
    """A run on the tiny bundle."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_adapter(folder, an_adapter(Bundle.open(bundle_folder)))
    request = {"bundle": str(bundle_folder), "seed": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump({"request": request}))
    return folder


def ask(**told):
    """A command's answer, and the causes of its restarts."""
    lines: list[dict] = []
    request = InferenceRequest(budget_bytes=BUDGET, **told)
    found, memory = run_inference(request, record=lines.append)
    assert max(p.measured_peak_bytes for p in memory.phases.values()) <= BUDGET
    return found, [line["cause"] for line in lines if line["kind"] == "restart"]


def test_predict_names_it_and_answers_the_rest(run_folder, pictures, tmp_path, monkeypatch):
    workers(tmp_path / "site", CARELESS, monkeypatch)
    found, causes = ask(command="predict", run=str(run_folder), paths=[str(pictures)])
    assert isinstance(found, Predictions) and len(found.predictions) == 25
    (bad,) = [item for item in found.predictions if item.error]
    assert bad.path.endswith("bomb.tif") and bad.error == ENDED and not bad.labels
    assert len(causes) == 2, causes
    shutil.move(pictures / "class1" / "bomb.tif", tmp_path)
    good = {item.path: item for item in predict(run_folder, [pictures]).predictions}
    for item in found.predictions:
        if not item.error:
            other = good[item.path].labels[0]
            assert item.labels[0].label == other.label
            assert item.labels[0].probability == pytest.approx(other.probability, abs=1e-5)


def test_a_decoder_that_falls_over_is_the_pictures_doing_too(
    run_folder, pictures, tmp_path, monkeypatch
):
    workers(tmp_path / "site", FALLS, monkeypatch)
    found, causes = ask(command="predict", run=str(run_folder), paths=[str(pictures / "class1")])
    assert [item.error for item in found.predictions if item.error] == [ENDED]
    assert causes == ["ended by SIGSEGV while it decoded a picture"] * 2


def test_evaluate_check_and_suggest_skip_and_count_it(
    run_folder, bundle_folder, pictures, tmp_path, monkeypatch
):
    workers(tmp_path / "site", CARELESS, monkeypatch)
    found, causes = ask(
        command="evaluate", run=str(run_folder), data=str(pictures), cache=str(tmp_path / "none")
    )
    assert isinstance(found, Evaluation) and found.count == 24 and len(causes) == 2
    assert [(Path(s.path).name, s.reason) for s in found.skipped] == [("bomb.tif", ENDED)]
    cache = {"bundle": str(bundle_folder), "cache": str(tmp_path / "cache")}
    found, causes = ask(command="check", data=str(pictures), **cache)
    assert isinstance(found, Review) and found.count == 24 and len(causes) == 2
    assert [item["reason"] for item in found.skipped] == [ENDED]
    found, causes = ask(command="suggest", paths=[str(pictures)], data="none", top=3, **cache)
    assert isinstance(found, Suggestions) and found.new == 0 and len(causes) == 2
    assert [item["reason"] for item in found.skipped] == [ENDED]


def test_the_command_says_which(run_folder, pictures, tmp_path, monkeypatch, capfd):
    from edgeladder.cli.app import main

    workers(tmp_path / "site", CARELESS, monkeypatch)
    capfd.readouterr()
    code = main(["predict", str(pictures), "--run", str(run_folder), "--budget", "400MB", "--json"])
    rows = json.loads(capfd.readouterr().out)["predictions"]
    assert code == 0 and len(rows) == 25
    assert [row["error"] for row in rows if row["error"]] == [ENDED]
