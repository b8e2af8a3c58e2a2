"""Unlabelled pictures in a run: found, cached, given labels, trained on, reported, resumed."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from here import fill, fit, label, phase, prepared, run, score

from edgeladder.budget import policy
from edgeladder.core.errors import DataError
from edgeladder.core.plan import Plan
from edgeladder.core.records import to_json
from edgeladder.core.request import TrainRequest
from edgeladder.core.tensors import TensorFile
from edgeladder.jobs import supervisor
from edgeladder.jobs.cache_wanted import wanted_samples
from edgeladder.jobs.control import Control
from edgeladder.jobs.pseudo_label_phase import with_pseudo_labels
from edgeladder.jobs.run_directory import RunDirectory, read_metrics
from edgeladder.runtime.adapter import load_adapter
from edgeladder.runtime.cache.selection import Selection
from tests.conftest import make_pictures

MB = 1_000_000
EACH = 12  # unlabelled pictures of a class


@pytest.fixture
def data(tmp_path):
    """Three classes of eight pictures, and twelve of each that nobody labelled."""
    folder = make_pictures(tmp_path / "pictures")
    later = make_pictures(tmp_path / "later", count=EACH + 8)
    (folder / "unlabelled" / "camera").mkdir(parents=True)
    for path in sorted(later.rglob("*.png")):
        number = int(path.stem.removeprefix("picture"))
        if number >= 8:
            shutil.copy(path, folder / "unlabelled" / "camera" / f"{path.parent.name}-{number}.png")
    return folder


@pytest.fixture
def ask(bundle_folder, data, tmp_path):
    """A request on the tiny bundle."""

    def make(name, *overrides, **changes):
        values = {
            "bundle": str(bundle_folder),
            "data": str(data),
            "cache": str(tmp_path / "cache"),
            "run": str(tmp_path / name),
            "budget_bytes": 8_000 * MB,
            "overrides": ["train.steps=6", "head.kind=blend", *overrides],
            "engine": "stock",
            "threads": 1,
            **changes,
        }
        return TrainRequest(**values)

    return make


def told(request):
    return TensorFile(RunDirectory(request.run).pseudo_labels)


def test_they_teach_ladder_and_head(ask):
    request, without = ask("with"), ask("without", "unlabelled.use=false")
    result, plain = run(request), run(without)
    assert result["prepared"].counts.unlabelled == 3 * EACH
    assert plain["prepared"].counts.unlabelled == 0
    assert not RunDirectory(without.run).pseudo_labels.exists()
    selection = Selection.load(RunDirectory(request.run).selection)
    assert selection.unlabelled_keys.shape == (3 * EACH, 16)
    labels = told(request)["labels"]
    found = json.loads(told(request).metadata["result"])
    assert found["pictures"] == 3 * EACH and found["used"] == int((labels >= 0).sum()) > 9
    assert sum(found["classes"].values()) == found["used"]
    assert list(found["classes"]) == ["class0", "class1", "class2"]
    # noise of a bright colour: what got a label got the right one
    names = sorted(path.name for path in Path(request.data, "unlabelled", "camera").iterdir())
    truth = np.array([int(name[5]) for name in names])
    given = labels >= 0
    assert (labels[given] == truth[given]).mean() > 0.9
    both, count = with_pseudo_labels(RunDirectory(request.run), selection)
    assert count == len(selection.train_labels) and len(both.train_labels) == count + found["used"]
    np.testing.assert_array_equal(both.train_labels[count:], labels[given])
    np.testing.assert_array_equal(both.train_keys[0, count:], selection.unlabelled_keys[given])
    mine, others = load_adapter(Path(request.run)), load_adapter(Path(without.run))
    assert any(
        not np.array_equal(mine.parameters[name], value)
        for name, value in others.parameters.items()
    )
    rows = [name for name in mine.head_arrays if name.endswith("support.0")]
    for name in rows:
        assert len(mine.head_arrays[name]) == len(others.head_arrays[name]) + found["used"]
    assert result["head_accuracy"] is not None and plain["head_accuracy"] is None


def test_steps_known_pictures_and_the_side_that_judges_are_those_somebody_labelled(ask):
    request, without = ask("with"), ask("without", "unlabelled.use=false")
    result, plain = run(request), run(without)
    assert result["prepared"].steps == plain["prepared"].steps
    assert result["prepared"].proximal == plain["prepared"].proximal
    assert result["accuracy"]["count"] == plain["accuracy"]["count"]
    mine, others = (load_adapter(Path(it.run)).known_arrays for it in (request, without))
    for name, rows in others.items():
        np.testing.assert_array_equal(mine[name], rows)


def test_a_ladder_alone_learns_from_them_too(ask):
    result = run(ask("ladder", "head.kind=none"))
    assert result["head"] is None and result["head_accuracy"] is None
    found = json.loads(told(ask("ladder")).metadata["result"])
    assert found["used"] > 9 and found["accuracy_without"] is not None


def test_bytes_that_have_a_label_or_judge_are_not_among_them(ask, data):
    for number, path in enumerate(sorted(data.glob("class*/*.png"))):
        shutil.copy(path, data / "unlabelled" / f"again-{number}.png")
    shutil.copy(data / "unlabelled" / "camera" / "class0-8.png", data / "unlabelled" / "twice.png")
    (data / "unlabelled" / "broken.png").write_bytes(b"no picture")
    request = ask("run")
    run(request)
    selection = Selection.load(RunDirectory(request.run).selection)
    keys = {row.tobytes() for row in selection.unlabelled_keys}
    assert len(keys) == len(selection.unlabelled_keys) == 3 * EACH
    others = (*selection.train_keys[0], *selection.test_keys)
    assert not keys & {row.tobytes() for row in others}
    assert [item["path"] for item in selection.skipped] == ["unlabelled/broken.png"]


def test_another_folder_or_archive_takes_their_place(ask, data, tmp_path):
    elsewhere = shutil.move(data / "unlabelled", tmp_path / "camera")
    archive = tmp_path / "camera.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(elsewhere.rglob("*.png")):
            target.write(path, path.name)
    found = []
    for name, place in (("folder", elsewhere), ("archive", archive)):
        request = ask(name, unlabelled=str(place))
        assert run(request)["prepared"].counts.unlabelled == 3 * EACH
        found.append(told(request)["labels"])
    np.testing.assert_array_equal(*found)
    assert prepared(ask("none")).counts.unlabelled == 0
    with pytest.raises(DataError, match="no folder or .zip"):
        prepared(ask("gone", unlabelled=str(tmp_path / "nowhere")))


def test_too_few_say_nothing_and_the_result_says_why(ask, data):
    for path in sorted((data / "unlabelled" / "camera").iterdir())[20:]:
        path.unlink()
    request = ask("few", limit="none", budget_bytes=4_000 * MB)
    result = supervisor.train(request)
    assert result.unlabelled is not None
    assert result.unlabelled.used == 0 and result.unlabelled.pictures == 20
    assert "too few" in result.unlabelled.reason and "too few" in result.unlabelled.told()
    assert result.unlabelled.accuracy_with is None


def test_a_whole_run_reports_them(ask):
    request = ask("run", limit="none", budget_bytes=4_000 * MB)
    phases = []
    result = supervisor.train(request, lambda phase, *more: phases.append(phase))
    assert list(dict.fromkeys(phases))[-4:] == ["precompute", "pseudo_label", "train", "evaluate"]
    found = result.unlabelled
    assert found is not None and found.used > 9 and found.accuracy_with is not None
    measured = result.memory.phases["pseudo_label"]
    assert 0 < measured.measured_peak_bytes <= measured.planned_peak_bytes
    values = json.loads(RunDirectory(request.run).result.read_text())
    assert values["unlabelled"] == to_json(found) and values["seconds"]["pseudo_label"] > 0
    kinds = [line["phase"] for line in read_metrics(RunDirectory(request.run).metrics)
             if line["kind"] == "phase"]  # fmt: skip
    assert kinds == ["precompute", "pseudo_label", "train", "evaluate"]
    assert f"{found.used} of {3 * EACH} taught" in found.told()


def test_what_was_found_stays_when_the_run_goes_on(ask, data):
    request = ask("run")
    job = prepared(request)
    assert phase(fill, job)[0] == phase(label, job)[0] == "done"
    path = RunDirectory(request.run).pseudo_labels
    first = path.read_bytes()
    assert phase(label, job)[0] == "done" and path.read_bytes() == first
    whole = phase(fit, job)
    assert phase(score, job)[0] == "done"
    kept = load_adapter(Path(request.run))
    # cut short before the ladder was trained: the same labels, the same adapter
    again = ask("again")
    run(again)
    for name, value in load_adapter(Path(again.run)).parameters.items():
        np.testing.assert_array_equal(value, kept.parameters[name])
    assert whole[0] == "done" and told(again)["labels"].tolist() == told(request)["labels"].tolist()
    # other pictures, or a file that a power cut left: they are looked at again
    path.write_bytes(first[:-20])
    assert phase(label, job)[0] == "done"
    np.testing.assert_array_equal(told(request)["labels"], told(again)["labels"])
    next((data / "unlabelled" / "camera").iterdir()).unlink()
    fewer = prepared(replace(request, resume=True))
    assert phase(fill, fewer)[0] == phase(label, fewer)[0] == "done"
    assert len(told(request)["labels"]) == 3 * EACH - 1


def test_an_order_to_leave_is_obeyed(ask):
    job = prepared(ask("run"))
    phase(fill, job)
    for order in ("stop", "restart"):
        control = Control()
        control.order(order)
        assert phase(label, job, control) == (order, None)
        assert not RunDirectory(job.request.run).pseudo_labels.exists()


def test_told_that_classes_are_even(ask, data):
    for path in sorted(data.glob("class*/*.png"))[::2]:
        path.unlink()  # where few are labelled, they are looked at more than once
    request = ask("even", "unlabelled.classes=even")
    job, control, seen = prepared(request), Control(), []
    phase(fill, job)
    control.tell = seen.append
    assert phase(label, job, control)[0] == "done"
    steps = policy.SELF_TRAINING_PASSES * 3 * EACH
    assert [event.steps for event in seen] == [steps] * policy.SELF_TRAINING_PASSES
    found = json.loads(told(request).metadata["result"])
    assert max(found["classes"].values()) <= round(0.6 * EACH) + 2


def test_a_plan_has_the_phase_before_training(ask):
    decided = prepared(ask("whole")).plan
    assert list(decided.phases) == ["precompute", "pseudo_label", "train", "evaluate"]
    assert decided.unlabelled == decided.to_json()["unlabelled"] == 3 * EACH
    assert Plan.from_json(decided.to_json()) == decided
    assert (
        decided.space.cache_bytes
        > prepared(ask("x", "unlabelled.use=false")).plan.space.cache_bytes
    )


def test_pruning_keeps_their_samples(ask, bundle_folder, data, tmp_path):
    request = ask("runs/one", unlabelled=str(shutil.move(data / "unlabelled", tmp_path / "camera")))
    run(request)
    rows = Selection.load(RunDirectory(request.run).selection).unlabelled_keys
    keys, cache = {row.tobytes() for row in rows}, Path(request.cache)

    def kept(runs):
        wanted = wanted_samples(cache, [bundle_folder], [data], tmp_path / runs)
        assert wanted.keys
        return [keys <= samples for samples in wanted.keys.values()]

    assert all(kept("runs")) and not any(kept("no-runs"))  # a run named the folder
    shutil.move(tmp_path / "camera", data / "unlabelled")
    assert all(kept("no-runs"))


def test_enough_labelled_pictures_need_none(ask, data, monkeypatch):
    monkeypatch.setattr(policy, "ENOUGH_LABELLED", 5)
    job = prepared(ask("enough"))
    assert job.counts.unlabelled == 0 and "pseudo_label" not in job.plan.phases
    assert job.untaught is not None and job.untaught.pictures == 3 * EACH
    assert "would not help" in job.untaught.told()
    assert prepared(ask("few", shots=4)).untaught is None
