"""Switches of a run, on the tiny bundle: heads alone and as a term, the pull, folds, views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from here import fit, phase, prepared, run

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import LossConfig, TrainConfig
from edgeladder.core.initial import initial_values
from edgeladder.core.request import TrainRequest
from edgeladder.jobs.control import Control
from edgeladder.jobs.folds import folds_of, held_out
from edgeladder.runtime.adapter import load_adapter
from edgeladder.runtime.cache.inputs import open_reader
from edgeladder.runtime.cache.selection import Selection
from edgeladder.runtime.classifier import Classifier
from edgeladder.runtime.deployment import deploy
from edgeladder.runtime.engine import StepPlan, installed_engines, open_engine
from edgeladder.runtime.engine.golden import perturbed
from edgeladder.runtime.heads.closed_form import head_from
from edgeladder.runtime.heads.fit_head import fit_cached_head
from edgeladder.runtime.logits import Activations, ClassLogits
from tests.runtime.engine.problem import problem

STEPS = ["train.steps=5"]


@pytest.fixture
def ask(bundle_folder, picture_folder, tmp_path):
    """A request on the tiny bundle."""

    def make(name, *overrides, **changes):
        return TrainRequest(
            bundle=str(bundle_folder),
            data=str(picture_folder),
            cache=str(tmp_path / "cache"),
            run=str(tmp_path / name),
            budget_bytes=8_000_000_000,  # this process has planned for itself, torch and all
            overrides=[*STEPS, *overrides],
            engine="stock",
            threads=1,
            **changes,
        )

    return make


@pytest.mark.parametrize(
    ("name", "plan"),
    [(name, StepPlan(threads=1)) for name in installed_engines()]
    + [("stock", StepPlan("chunked", 2, threads=1))],
)
def test_the_pull_is_a_square_in_the_loss(bundle_folder, name, plan):
    bundle = Bundle.open(bundle_folder)
    engine = open_engine(name, bundle, plan, TrainConfig(), LossConfig())
    engine.set_parameters(perturbed(engine.parameters()))
    inputs, strength = problem(bundle), 0.25
    free = engine.gradients(inputs), {k: v.copy() for k, v in engine.gradient_views.items()}
    engine.set_proximal(strength)
    pulled = engine.gradients(inputs), engine.gradient_views
    values = engine.parameters()
    held = {"image_up", "text_up"}
    squares = sum(float((values[name] ** 2).sum()) for name in held)
    assert pulled[0] - free[0] == pytest.approx(strength * squares, rel=1e-4)
    for name, slope in free[1].items():
        expected = slope + 2 * strength * values[name] if name in held else slope
        np.testing.assert_allclose(pulled[1][name], expected, rtol=1e-5, atol=1e-7)


def test_the_pull_is_in_units_of_one_over_shots(ask):
    values = prepared(ask("run", "loss.proximal=2", shots=4))
    assert values.proximal == pytest.approx(2 / 4)
    assert prepared(ask("free")).proximal == 0


def test_a_head_alone_trains_nothing(ask, bundle_folder):
    request = ask("alone", "head.kind=kernel", "head.alone=true")
    result = run(request)
    assert result["steps"] == 0 and result["head"] == {"kind": "kernel", "eta": 1.0, "ladder": 0.0}
    folder = Path(request.run)
    adapter = load_adapter(folder)
    for name, value in initial_values(Bundle.open(bundle_folder)):
        np.testing.assert_array_equal(adapter.parameters[name], value)
    bundle = Bundle.open(bundle_folder)
    reader = open_reader(bundle, request.cache, Selection.load(folder / "selection.safetensors"))
    head = fit_cached_head(
        ClassLogits.of(bundle.manifest.model), reader.windows("train", 64), "kernel"
    )
    stored = head_from(adapter.head_arrays, adapter.record.head.rule)
    squares = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    with Classifier.open(folder, bundle) as classifier:
        tuned, zero_shot = classifier.judge_squares(squares)[0]
        window = next(iter(reader.windows("test", 64)))
        taps = window.image_taps(0, len(window.labels))
        mine, plain = classifier.judge(Activations(taps, window.image_embedding))
    features = Activations(taps, window.image_embedding).features()
    mine = mine * adapter.record.calibration.temperature
    np.testing.assert_allclose(mine, stored.logits(features, plain), atol=1e-4)
    np.testing.assert_allclose(mine, head.logits(features, plain), atol=0.05)  # support in fp16
    assert tuned.shape == zero_shot.shape == (3, 3)
    assert deploy(folder, folder / "model.onnx", bundle=bundle).difference < 1e-3


def test_folds_are_alike_and_need_two_pictures():
    labels = np.repeat([0, 1, 2], 6)
    folds = folds_of(labels, 4)
    assert set(folds) == {0, 1, 2, 3}
    for fold in range(4):
        assert set(labels[folds != fold]) == {0, 1, 2}
        assert len(set(np.bincount(labels[folds == fold]))) == 1
    assert set(folds_of(np.repeat([0, 1], 2), 4)) == {0, 1}
    assert folds_of(np.array([0, 0, 1]), 4) is None


def test_the_heads_weight_comes_from_ladders_that_saw_less(ask):
    request = ask("folds", "head.kind=gda", "head.folds=3")
    result = run(request)
    folder = Path(request.run)
    count = result["prepared"].counts.train
    left = held_out(folder, count)
    assert left is not None and left.shape == (count, 3) and np.isfinite(left).all()
    assert result["head"]["ladder"] == 1 and 0 <= result["head"]["eta"] <= 100
    fixed = run(ask("fixed", "head.kind=gda", "head.weight=0.5", "head.full_at=1000"))
    assert (
        fixed["head"]["eta"] == pytest.approx(0.5 * count / (3 * 1000))
        and not (Path(fixed["prepared"].request.run) / "folds").exists()
    )
    for name, value in load_adapter(folder).parameters.items():  # the run's own ladder saw all
        np.testing.assert_array_equal(load_adapter(folder.parent / "fixed").parameters[name], value)
    # a fold's logits are those of a ladder trained on the others alone
    (folder / "folds" / "1.safetensors").unlink()
    kept = (folder / "folds" / "0.safetensors").stat().st_mtime_ns
    assert held_out(folder, count) is None
    outcome, _ = phase(fit, result["prepared"])
    assert outcome == "done" and (folder / "folds" / "0.safetensors").stat().st_mtime_ns == kept
    np.testing.assert_array_equal(held_out(folder, count), left)


def test_an_order_to_leave_a_fold_is_obeyed_and_resumed(ask):
    request = ask("cut", "head.kind=gda", "head.folds=2")
    values = run(request)["prepared"]
    folder, count = Path(request.run), values.counts.train
    left = held_out(folder, count)
    for path in (folder / "folds").iterdir():
        path.unlink()
    control = Control()
    control.order("stop")
    assert phase(fit, values, control)[0] == "stop" and held_out(folder, count) is None
    assert phase(fit, values)[0] == "done"
    np.testing.assert_array_equal(held_out(folder, count), left)


def test_views_averaging_and_pulls_train_together(ask):
    loss = ["loss.proximal=1", "loss.anchor=0.3", "loss.smoothing=0.1"]
    train = ["train.views=2", "train.average=0.9", "train.optimizer=sgd"]
    result = run(ask("all", *loss, *train))
    assert np.isfinite(result["loss"]) and result["accuracy"]["tuned"] >= 0
    selection = Selection.load(Path(result["prepared"].request.run) / "selection.safetensors")
    assert selection.views == 2
