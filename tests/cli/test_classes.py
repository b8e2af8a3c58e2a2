"""`--classes` of predict, evaluate, deploy: what the worker is asked, and what a person reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeladder.cli.app import main
from edgeladder.core.inference import (
    AskedClasses,
    InferenceRequest,
    Label,
    Prediction,
    Predictions,
)
from edgeladder.core.memory_record import MemoryResult

Answered = list[InferenceRequest]


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Answered:
    """Requests as the worker would get them, each answered among a trained and two new names."""
    requests: Answered = []

    def run(
        request: InferenceRequest, progress: object, record: object
    ) -> tuple[Predictions, MemoryResult]:
        requests.append(request)
        found = Prediction(path="a.png", labels=[Label(label="gnu", probability=0.9)])
        asked = AskedClasses(count=3, new=["gnu", "yak"], head="none")
        given = asked if request.classes else None
        return Predictions(predictions=[found], asked=given), MemoryResult(
            budget_bytes=100, enforcement=None
        )

    monkeypatch.setattr("edgeladder.jobs.inference.run_inference", run)
    return requests


def test_names_go_to_the_worker_as_they_were_typed(
    answered: Answered, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = ["predict", "a.png", "--run", str(tmp_path), "--classes", "hat, gnu,yak"]
    assert main([*told, "--json"]) == 0
    assert answered[0].classes == "hat, gnu,yak"
    values = json.loads(capfd.readouterr().out)
    assert values["asked"] == {"count": 3, "new": ["gnu", "yak"], "head": "none"}
    assert main(told) == 0
    assert "2 of 3 names were never trained (gnu, yak)" in capfd.readouterr().out


def test_the_trained_classes_need_no_word(
    answered: Answered, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "a.png", "--run", str(tmp_path)]) == 0
    assert answered[0].classes is None
    assert "never trained" not in capfd.readouterr().out
