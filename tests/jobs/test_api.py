"""The Python API: cheap to import, typed, and the same jobs as the command line's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeladder
from edgeladder import notebook
from edgeladder.core.request import TrainRequest
from edgeladder.core.shipped import DEMO_PICTURES
from edgeladder.jobs import call as module
from edgeladder.jobs.call import call
from edgeladder.run import Run
from tests.api_usage import usage

ROOT = Path(__file__).parents[2]  # the guides stand beside the tests, not beside the package
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(edgeladder.__file__).parents[1])}
MB = 1_000_000


def few_pictures(folder: Path) -> Path:
    """Two classes, three training and two test pictures of each."""
    with zipfile.ZipFile(DEMO_PICTURES) as archive:
        for split, most in (("train", 3), ("test", 2)):
            for name in ("dress", "shoes"):
                inside = [n for n in archive.namelist() if n.startswith(f"{split}/{name}/")]
                for member in sorted(n for n in inside if not n.endswith("/"))[:most]:
                    archive.extract(member, folder)
    return folder


def test_importing_the_package_loads_nothing():
    code = (
        "import sys, edgeladder; dir(edgeladder)\n"
        "print([m for m in sys.modules if m.startswith('edgeladder')])\n"
        "print(edgeladder.train.__module__, edgeladder.ConfigError.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True
    )
    assert done.stdout.splitlines() == ["['edgeladder']", "edgeladder.api edgeladder.core.errors"]
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = edgeladder.trian
    for name in edgeladder._LAZY:
        assert getattr(edgeladder, name) is not None and name in dir(edgeladder)


def test_all_abilities_on_few_pictures(tmp_path):
    pictures = few_pictures(tmp_path / "pictures")
    picture = sorted(pictures.glob("test/*/*"))[0]
    found = usage(pictures, picture, tmp_path)
    assert [item.path for item in found] == [str(picture)] * 2 + ["picture 2", "picture 3"]
    assert len({item.labels[0].label for item in found}) == 1
    # pixels that were handed over are the file's own
    shares = [item.labels[0].probability for item in found]
    assert max(shares) - min(shares) < 1e-6
    with zipfile.ZipFile(DEMO_PICTURES) as archive:  # of neither class: its shares are far from 0
        doubtful = archive.extract("test/hat/02.jpg", tmp_path)
    told = edgeladder.load(tmp_path / "run").predict(doubtful, progress=False)[0].labels[0]
    name, share = guide_says(
        'onnxruntime.InferenceSession("model.onnx"', tmp_path, doubtful
    ).split()
    # int8 weights multiplied in float32: activations rounded too would be 1.5e-4 off
    assert name == told.label and told.probability < 0.99
    assert abs(float(share) - told.probability) < 1e-5
    lines = guide_says("np.save", tmp_path, str(pictures / "test")).splitlines()
    assert Path(lines[0].split()[1]) == picture  # nothing is more like it than itself
    assert [Path(line.split()[1]).parent.name for line in lines[1:]] == ["dress", "shoes"]
    index = np.load(tmp_path / "index.npy")
    assert len(index) == 4 and np.allclose(np.linalg.norm(index, axis=1), 1, atol=1e-5)


def guide_says(words: str, folder: Path, *arguments: str) -> str:
    """What the guide's example with these words prints; it needs nothing of ours."""
    guide = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = [part.split("```")[0] for part in guide.split("```python\n") if words in part][:1]
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, *arguments],
        capture_output=True, text=True, cwd=folder, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_notebook_of_the_guides_runs(tmp_path):
    cells = json.loads((ROOT / "docs" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, env=ENVIRONMENT, cwd=tmp_path, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.onnx").is_file()


@pytest.mark.parametrize(
    ("asked", "kind", "words"),
    [
        ({"data": "nowhere"}, "ConfigError", "no pictures at nowhere"),
        ({"bundle": "nothing"}, "ConfigError", "no bundle at nothing"),
        ({"budget": "lots"}, "ConfigError", "is not a size"),
    ],
)
def test_mistakes_are_named_before_anything_starts(tmp_path, asked, kind, words):
    given = {"data": str(DEMO_PICTURES), "bundle": "nano", **asked}
    with pytest.raises(getattr(edgeladder, kind), match=words):
        edgeladder.train(given.pop("data"), **given)


def test_what_a_supervisor_raises_is_raised_here_with_all_it_says(tmp_path):
    with pytest.raises(edgeladder.ConfigError, match="unknown"):
        edgeladder.plan(DEMO_PICTURES, bundle="nano", settings=["train.stepz=4"])
    with pytest.raises(edgeladder.BudgetError) as caught:
        edgeladder.train(
            DEMO_PICTURES, bundle="nano", budget="60MB", run=tmp_path / "run", progress=False
        )
    assert 60 * MB < caught.value.minimum_budget_bytes < 300 * MB
    assert not (tmp_path / "run").exists()


def test_an_interrupt_is_passed_on_and_answered(tmp_path):
    asked = TrainRequest(bundle="nano", data=str(DEMO_PICTURES), run=str(tmp_path / "run"))

    def interrupt(phase: str, *more: object) -> None:
        signal.raise_signal(signal.SIGINT)

    # as in a terminal or a notebook: a shell's background jobs ignore it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(edgeladder.Interrupted, match="stopped"):
            call("train", asked, interrupt)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_supervisor_that_says_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "with_package", lambda environment: {"PYTHONHOME": "/nowhere"})
    with pytest.raises(edgeladder.EdgeLadderError, match="ended with code"):
        call("plan", TrainRequest())
    with pytest.raises(edgeladder.EdgeLadderError, match="ended with code"):
        call("plan", TrainRequest(overrides=["x" * 1_000_000]))  # it ends before it has read all


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8), 7],
)
def test_what_is_no_picture_is_refused(tmp_path, picture):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(edgeladder.DataError, match="picture 0 is a"):
        Run(tmp_path).predict([picture])


def test_a_folder_without_a_run_and_a_run_that_is_not_finished(tmp_path, monkeypatch):
    with pytest.raises(edgeladder.ConfigError, match="no run here"):
        edgeladder.load(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(edgeladder.ConfigError, match="not finished"):
        _ = edgeladder.load(tmp_path).accuracy
    monkeypatch.chdir(tmp_path)
    with pytest.raises(edgeladder.ConfigError, match="no run below runs"):
        edgeladder.load()


def test_progress_in_a_notebook_is_one_table():
    shown: list[str] = []

    class Display:
        def update(self, data: dict[str, str], raw: bool) -> None:
            assert raw
            shown.append(data["text/html"])

    assert not notebook.in_notebook()
    with notebook.NotebookProgress(Display()) as progress:
        progress("plan")
        progress("train", 1, 4, "<loss>", 100 * MB, 160 * MB)
        progress("train", 4, 4, "", 120 * MB, 160 * MB)
        progress("evaluate", 1, 2, "<b>", 90 * MB, 160 * MB)
    last = shown[-1]
    assert last.count("<tr>") == 2 and "plan" not in last
    assert 'max="4" value="4"' in last and "peak 120 of 160 MB" in last
    assert "90 of 160 MB" in last and "&lt;b&gt;" in last and "<b>" not in last


def test_an_image_keeps_its_orientation(tmp_path, monkeypatch):
    image = Image.new("RGB", (6, 4), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    (tmp_path / "config.yaml").write_text("")
    seen = []

    def infer(command, request, progress):
        with Image.open(request.paths[0]) as opened:
            seen.append(opened.getexif().get(0x0112))
        raise KeyError

    monkeypatch.setattr("edgeladder.run._infer", infer)
    with pytest.raises(KeyError):
        Run(tmp_path).predict(image)
    assert seen == [6]
