"""Predict, evaluate and deploy as jobs: whole, streamed or refused, under a live limit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import yaml

import edgeladder
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import BudgetError, DataError, EdgeLadderError
from edgeladder.core.events import Failed
from edgeladder.core.inference import RESULT_OF, InferenceRequest
from edgeladder.core.initial import initial_values
from edgeladder.core.memory_record import MemoryResult
from edgeladder.core.records import from_json, to_json
from edgeladder.jobs import attempt
from edgeladder.jobs.inference import run_inference
from edgeladder.runtime.adapter import adapter_of, save_adapter
from edgeladder.runtime.classifier import InferenceSizes
from edgeladder.runtime.evaluation import Judged, evaluate
from edgeladder.runtime.prediction import predict
from edgeladder.runtime.towers.tokens import DEFAULT_TEMPLATES
from tests.conftest import make_pictures
from tests.runtime.infer.conftest import an_adapter

MB = 1_000_000
NANO = Path(edgeladder.__file__).parent / "_nano"
COMMAND = [sys.executable, "-c", "from edgeladder.cli.app import run; run()"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the embedded nano model, whose towers weigh something."""
    folder = tmp_path_factory.mktemp("nano")
    save_adapter(folder, an_adapter(Bundle.open(NANO / "bundle")))
    request = {
        "bundle": str(NANO / "bundle"), "data": str(NANO / "pictures.zip"), "seed": 0, "shots": 4
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump({"request": request}))
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of twelve pictures."""
    return make_pictures(tmp_path_factory.mktemp("pictures") / "p", count=12)


DRIVER = """
import json, sys
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.events import Failed
from edgeladder.core.inference import InferenceRequest
from edgeladder.core.records import from_json, to_json
from edgeladder.jobs.inference import run_inference
lines = []
request = from_json(InferenceRequest, json.loads(sys.argv[1]))
try:
    found = run_inference(request, record=lines.append)
except EdgeLadderError as error:
    print(json.dumps({"error": to_json(Failed.of(error))}))
else:
    print(json.dumps({"found": to_json(list(found)), "lines": lines}))
"""


def ask(command: str, run: Path, **told):
    """The result, its memory, and every line of evidence, by a small process as commands are."""
    request = InferenceRequest(command=command, run=str(run), **told)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(to_json(request))],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    answer = json.loads(done.stdout)
    if "error" in answer:
        raise from_json(Failed, answer["error"]).error()
    result, memory = answer["found"]
    return from_json(RESULT_OF[command], result), from_json(MemoryResult, memory), answer["lines"]


ALONE = """
import json, sys
from edgeladder.core.records import to_json
from edgeladder.runtime.prediction import predict
print(json.dumps(to_json(predict(sys.argv[1], [sys.argv[2]], top=int(sys.argv[3])))))
"""


def predict_alone(run: Path, pictures: Path, top: int = 1) -> dict:
    """`predict` without a worker, in a process where nothing else ran.

    Where other sessions ran before, a batch's embeddings may differ in the last bit
    (docs/budget.md), so such a comparison needs a process as fresh as the worker's.
    """
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(run), str(pictures), str(top)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    return json.loads(done.stdout)


def least(command: str, run: Path, **told) -> int:
    """The smallest budget, as the refusal of a smaller one names it."""
    with pytest.raises(BudgetError, match="needs .* at its smallest") as refused:
        ask(command, run, budget_bytes=60 * MB, **told)
    assert refused.value.exit_code == 3
    assert "--budget" in (refused.value.remedy or "")
    assert refused.value.minimum_budget_bytes
    return refused.value.minimum_budget_bytes


def close(found, expected, tolerance: float) -> None:
    """Predictions of the same labels."""
    assert [item.path for item in found.predictions] == [i.path for i in expected.predictions]
    for item, other in zip(found.predictions, expected.predictions, strict=True):
        shares = {entry.label: entry.probability for entry in other.labels}
        assert item.labels[0].label == other.labels[0].label
        for entry in item.labels:
            assert entry.probability == pytest.approx(shares[entry.label], abs=tolerance)


def test_predict_is_whole_where_memory_is_ample_and_planned_as_measured(run_folder, pictures):
    found, memory, lines = ask("predict", run_folder, paths=[str(pictures)], top=3)
    alone = predict_alone(run_folder, pictures, top=3)
    assert to_json(found)["predictions"] == alone["predictions"]  # to the last bit
    assert memory.enforcement in ("cgroup2", "cgroup1", "systemd-run", "rlimit")
    read_back = [line["confirmed"] for line in lines if line["kind"] == "limit"]
    assert read_back and 0 < read_back[0] <= memory.budget_bytes
    peak = memory.phases["predict"]
    assert peak.measured_peak_bytes <= peak.planned_peak_bytes <= 1.25 * peak.measured_peak_bytes


def test_the_smallest_budget_streams_and_says_the_same(run_folder, pictures):
    told = {"paths": [str(pictures)], "top": 3}
    budget = least("predict", run_folder, **told)
    found, memory, lines = ask("predict", run_folder, budget_bytes=budget, **told)
    close(found, predict(run_folder, [pictures], top=3), 1e-6)
    peak = memory.phases["predict"]
    assert peak.measured_peak_bytes <= budget == memory.budget_bytes
    whole = ask("predict", run_folder, **told)[1].phases["predict"]
    assert peak.planned_peak_bytes < whole.planned_peak_bytes
    assert not [line for line in lines if line["kind"] == "restart"]


def test_streamed_pictures_pass_in_groups(run_folder, pictures):
    for sizes in (InferenceSizes(whole=False, batch=2, group=5), InferenceSizes(batch=1)):
        close(predict(run_folder, [pictures], sizes=sizes), predict(run_folder, [pictures]), 1e-6)


def test_evaluate_streams(run_folder, pictures):
    told = {"data": str(pictures), "split": "test"}
    budget = least("evaluate", run_folder, **told)
    found, memory, _ = ask("evaluate", run_folder, budget_bytes=budget, **told)
    assert memory.phases["evaluate"].measured_peak_bytes <= budget
    whole = evaluate(run_folder, Judged(data=pictures, split="test"))
    assert (found.count, found.split, found.classes) == (whole.count, "test", whole.classes)
    assert found.accuracy == pytest.approx(whole.accuracy, abs=1.1 / whole.count)


def test_deploy_stays_inside_its_budget(run_folder, tmp_path):
    out = tmp_path / "model.onnx"
    budget = least("deploy", run_folder, out=str(out))
    assert not list(tmp_path.iterdir())
    found, memory, _ = ask("deploy", run_folder, budget_bytes=budget, out=str(out))
    assert found.bytes == out.stat().st_size
    assert memory.phases["deploy"].measured_peak_bytes <= budget


def test_a_killed_worker_is_started_again_with_less(run_folder, pictures, monkeypatch):
    calls: list[int] = []
    run = attempt.Attempt.run

    def killed_once(self, expected):
        outcome = run(self, expected)
        calls.append(1)
        self.cause = "killed by hand"
        return ("again", None) if len(calls) == 1 else outcome

    monkeypatch.setattr(attempt.Attempt, "run", killed_once)
    lines: list[dict] = []
    request = InferenceRequest(command="predict", run=str(run_folder), paths=[str(pictures)])
    found, _ = run_inference(request, record=lines.append)
    assert [line["cause"] for line in lines if line["kind"] == "restart"] == ["killed by hand"]
    close(found, predict(run_folder, [pictures]), 1e-2)  # the second time streamed


def test_a_crash_of_the_worker_is_said_clearly(run_folder, pictures, monkeypatch, tmp_path):
    crash = "import os, sys\nif 'edgeladder.jobs.worker' in sys.orig_argv:\n"
    crash += "    os.write(2, b'a library fell over\\n')\n    os._exit(9)\n"
    (tmp_path / "sitecustomize.py").write_text(crash)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    with pytest.raises(EdgeLadderError, match="ended with code 9: a library fell over") as error:
        run_inference(InferenceRequest(command="predict", run=str(run_folder), paths=["p"]))
    assert "EDGELADDER_TRACEBACK" in (error.value.remedy or "")


def command(folder: Path, *arguments: object) -> subprocess.Popen:
    root = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
    )


def test_the_command_answers_with_its_memory(run_folder, pictures, tmp_path):
    given = ["predict", pictures, "--run", run_folder, "--json", "--device", "raspberry-pi-5"]
    done = command(tmp_path, *given, "--budget", "1GB")
    values = json.loads(done.communicate()[0])
    assert done.returncode == 0
    assert values["predictions"] == predict_alone(run_folder, pictures)["predictions"]
    assert values["memory"]["budget_bytes"] == 1_000_000_000
    assert set(values["memory"]["phases"]["predict"]) == {
        "planned_peak_bytes", "measured_peak_bytes"
    }  # fmt: skip
    refused = command(tmp_path, *given, "--budget", "50MB")
    error = json.loads(refused.communicate()[0])["error"]
    assert refused.returncode == 3
    assert error["minimum_budget_bytes"] > 50 * MB and "--budget" in error["remedy"]


def test_ctrl_c_ends_with_130(run_folder, pictures, tmp_path):
    process = command(tmp_path, "predict", *[pictures] * 40, "--run", run_folder, "--json")
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130
    assert json.loads(said)["error"]["type"] in ("Interrupted", "EdgeLadderError")


def test_a_garment_that_was_never_trained_is_told_by_its_name(tmp_path):
    """Real pictures, the shipped model, a ladder of other garments that has not moved yet."""
    bundle = Bundle.open(NANO / "bundle")
    words = {"class_names": ["hat", "dress"], "templates": list(DEFAULT_TEMPLATES)}
    values = dict(initial_values(bundle))
    save_adapter(tmp_path, adapter_of(bundle, values, classes=["hat", "dress"], **words))
    with zipfile.ZipFile(NANO / "pictures.zip") as archive:
        for name in archive.namelist():
            if name.startswith(("test/pants/", "test/shoes/")):
                archive.extract(name, tmp_path / "new")
    told = {"data": str(tmp_path / "new"), "bundle": str(bundle.folder)}
    found, memory, _ = ask("evaluate", tmp_path, classes="hat,dress,pants,shoes", **told)
    assert (found.count, found.asked.new) == (24, ["pants", "shoes"])
    assert found.accuracy == found.zero_shot_accuracy > 0.5
    peak = memory.phases["evaluate"]
    assert peak.measured_peak_bytes <= peak.planned_peak_bytes
    with pytest.raises(DataError, match="label 'pants' is not among the 2 known classes"):
        ask("evaluate", tmp_path, **told)
