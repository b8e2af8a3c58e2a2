"""The report of a real run: what the loop and the supervisor record is what a reader sees."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeladder.core.request import TrainRequest
from edgeladder.jobs import supervisor
from edgeladder.jobs.run_directory import read_metrics
from edgeladder.report import write_report
from edgeladder.report.record import EVENT_KINDS, read_run


@pytest.fixture
def folder(bundle_folder, picture_folder, tmp_path):
    """A run with two folds, made by its workers under a kernel limit where there is one."""
    request = TrainRequest(
        bundle=str(bundle_folder),
        data=str(picture_folder),
        cache=str(tmp_path / "cache"),
        run=str(tmp_path / "run"),
        budget_bytes=900_000_000,
        overrides=["train.steps=6", "head.kind=gda", "head.folds=2"],
        engine="stock",
        threads=1,
    )
    supervisor.train(request)
    return Path(request.folder)


def test_every_event_and_peak_of_a_run_is_in_its_report(folder):
    recorded = [record["kind"] for record in read_metrics(folder / "metrics.jsonl")]
    shown = [kind for kind in recorded if kind in EVENT_KINDS]
    assert shown.count("fold") == 2
    record = read_run(folder)
    assert [event["kind"] for event in record.events] == shown
    assert [step for step, _ in record.losses] == [1, 2, 3, 4, 5, 6]
    text = write_report(folder).read_text(encoding="utf-8")
    # a limit that works is a sentence, not a row
    assert {kind for kind in shown if f">{kind}<" not in text} == {"limit"}
    for line in read_metrics(folder / "metrics.jsonl"):
        if line["kind"] == "phase" and line["phase"] in ("precompute", "train", "evaluate"):
            assert f"{line['measured_peak_bytes'] / 1e6:.0f} MB" in text
