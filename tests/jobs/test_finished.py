"""What stays of a finished run, what a resumed one answers, and what worker.log holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeladder.core import disk
from edgeladder.core.files import sha256_file, write_json
from edgeladder.core.job import Accuracy, Counts
from edgeladder.core.memory_record import MemoryResult
from edgeladder.core.records import to_json
from edgeladder.core.request import TrainRequest
from edgeladder.core.result import CacheUse, RunResult, Seconds, Throughput
from edgeladder.jobs import supervisor as supervisors
from edgeladder.jobs.finished import drop_checkpoints, finished_result
from edgeladder.jobs.run_directory import RunDirectory
from edgeladder.jobs.worker_log import LARGEST_BYTES, WorkerLog

RESULT = RunResult(
    run="runs/one",
    engine="stock",
    steps=12,
    seed=0,
    counts=Counts(train=4, test=2, classes=2),
    accuracy=Accuracy(zero_shot=0.5, tuned=1.0, split="test", count=2),
    memory=MemoryResult(budget_bytes=10**9, enforcement="none", phases={}, actions=[]),
    throughput=Throughput(
        precompute_images_per_second=1.0, train_images_per_second=1.0, step_ms_median=1.0
    ),
    resumed_from=None,
    skipped_inputs=[],
    loss=0.1,
    head=None,
    prompts=None,
    cache=CacheUse(new=4, reused=0),
    seconds=Seconds(precompute=1.0, train=1.0, evaluate=1.0),
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run whose last phase has just ended."""
    folder = RunDirectory(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    for step in (8, 12):
        (folder.checkpoints / f"step-{step:09d}.safetensors").write_bytes(b"state")
    folder.adapter.write_bytes(b"weights")
    write_json(folder.adapter_record, {"sha256": sha256_file(folder.adapter)})
    write_json(folder.result, to_json(RESULT))
    folder.config.write_text("{}")
    return folder


def test_a_finished_run_answers_without_its_checkpoints(run: RunDirectory) -> None:
    assert finished_result(run) is None  # there are generations to go on from
    drop_checkpoints(run)
    assert not run.checkpoints.exists()
    assert finished_result(run) == RESULT


def test_a_damaged_adapter_is_trained_again(run: RunDirectory) -> None:
    drop_checkpoints(run)
    run.adapter.write_bytes(b"other")
    assert finished_result(run) is None


def test_a_run_without_a_result_is_not_finished(run: RunDirectory) -> None:
    drop_checkpoints(run)
    run.result.unlink()
    assert finished_result(run) is None


def test_resume_of_a_finished_run_starts_no_worker(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop_checkpoints(run)
    monkeypatch.setattr(supervisors.Supervisor, "run_phase", None)
    request = TrainRequest(run=str(run.folder), resume=True)
    assert supervisors.train(request) == RESULT
    assert json.loads(run.result.read_text())["steps"] == 12


class PowerCutError(BaseException):
    """The power went."""


class CutDisk(disk.Disk):
    """Loses power after so many removals."""

    def __init__(self, left: int):
        self.left = left

    def unlink(self, path: Path) -> None:
        self._count()
        super().unlink(path)

    def remove_folder(self, path: Path) -> None:
        self._count()
        super().remove_folder(path)

    def _count(self) -> None:
        if not self.left:
            raise PowerCutError
        self.left -= 1


@pytest.mark.parametrize("removals", [0, 1, 2])
def test_a_power_cut_leaves_a_generation_or_the_result(run: RunDirectory, removals: int) -> None:
    with pytest.raises(PowerCutError), disk.using(CutDisk(removals)):
        drop_checkpoints(run)
    left = [path.read_bytes() for path in run.checkpoints.glob("step-*")]
    assert left == [b"state"] * (2 - removals)  # whole: training from it ends with the same adapter
    assert (finished_result(run) == RESULT) == (not left)
    drop_checkpoints(run)
    assert finished_result(run) == RESULT


def test_the_log_is_rotated_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    log = WorkerLog(path, "train")
    log.line("begins")
    log.said(b"half a line")
    log.line("done")
    log.said(b"x" * (2 * LARGEST_BYTES))
    log.said(b"y")
    log.close()
    text = path.read_text()
    assert text.splitlines()[0].endswith("train: begins")
    assert text.splitlines()[1] == "half a line" and text.splitlines()[2].endswith("train: done")
    assert "it is left out" in text and "y" not in text.splitlines()[-1]
    assert len(text) < 1.1 * LARGEST_BYTES
    again = WorkerLog(path, "evaluate")
    again.line("begins")
    again.close()
    assert len(path.read_text().splitlines()) == 1
    assert (tmp_path / "worker.log.1").read_text() == text
