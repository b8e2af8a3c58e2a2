"""Engines on a bundle: all ways of a step agree, repeat exactly and continue exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import LossConfig, TrainConfig
from edgeladder.core.errors import ConfigError
from edgeladder.runtime.engine import Engine, StepPlan, installed_engines, open_engine, stock
from edgeladder.runtime.engine.golden import perturbed, replay
from edgeladder.runtime.engine.in_place import may_overwrite
from tests.runtime.engine.problem import problem

TRAIN = TrainConfig(learning_rate=1e-3)
PLANS = {
    "fused": StepPlan(threads=1),
    "recompute": StepPlan("recompute", threads=1),
    "chunk 2": StepPlan("chunked", 2, threads=1),
    "chunk 64": StepPlan("chunked", 64, threads=1),
    "no arena": StepPlan(threads=1, arena=False),
}


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.open(bundle_folder)


def opened(
    bundle: Bundle, plan: StepPlan, train: TrainConfig = TRAIN, name: str = "stock"
) -> Engine:
    engine = open_engine(name, bundle, plan, train, LossConfig(anchor=0.1))
    engine.set_parameters(perturbed(engine.parameters()))
    return engine


def losses(engine: Engine, bundle: Bundle, steps: int, first: int = 0) -> list[float]:
    return [
        engine.step(problem(bundle, seed=step % 4), 1e-3).loss
        for step in range(first, first + steps)
    ]


@pytest.mark.parametrize("way", [way for way in PLANS if way != "fused"])
def test_ways_of_a_step_agree(bundle, way):
    reference, other = opened(bundle, PLANS["fused"]), opened(bundle, PLANS[way])
    inputs = problem(bundle)
    assert other.gradients(inputs) == pytest.approx(reference.gradients(inputs), rel=1e-5)
    for name, expected in reference.gradient_views.items():
        difference = np.linalg.norm(other.gradient_views[name] - expected)
        assert difference <= 1e-5 * np.linalg.norm(expected) + 1e-9, name
    first, second = losses(reference, bundle, 10), losses(other, bundle, 10)
    np.testing.assert_allclose(second, first, rtol=1e-4)


def test_the_gradient_of_class_embeddings_takes_their_place(bundle, monkeypatch):
    """Bit for bit what an array of its own gives, over many windows of classes and two steps."""
    found = []
    for in_place in (True, False):
        if not in_place:
            monkeypatch.setattr(stock, "may_overwrite", lambda *_: False)
        engine = opened(bundle, PLANS["chunk 2"])
        curve = [
            engine.step(problem(bundle, classes=31, seed=seed), 1e-3).loss for seed in range(2)
        ]
        found.append((curve, engine.state()["parameters"].copy()))
    assert found[0][0] == found[1][0]
    np.testing.assert_array_equal(found[0][1], found[1][1])


def test_only_what_is_not_read_any_more_may_be_overwritten(bundle):
    loss = bundle.path(bundle.manifest.ladder.graphs["loss"].file)
    assert may_overwrite(loss, "text", "text_gradient")
    assert not may_overwrite(loss, "image", "image_gradient")  # the classes' gradient reads it
    assert not may_overwrite(loss, "text", "no such output")


@pytest.mark.parametrize("name", installed_engines())
def test_fifty_steps_follow_the_stock_engine_and_learn(bundle, name):
    curve = losses(opened(bundle, PLANS["fused"], name=name), bundle, 50)
    assert np.isfinite(curve).all()
    assert np.mean(curve[-4:]) < 0.9 * np.mean(curve[:4])
    reference = losses(opened(bundle, PLANS["chunk 2"]), bundle, 50)
    np.testing.assert_allclose(curve, reference, rtol=1e-3)


@pytest.mark.parametrize("name", installed_engines())
def test_repeats_are_equal_bit_for_bit(bundle, name):
    curves, ends = [], []
    for _ in range(2):
        engine = opened(bundle, PLANS["fused"], name=name)
        curves.append(losses(engine, bundle, 6))
        ends.append(engine.state()["parameters"].copy())
    assert curves[0] == curves[1]
    np.testing.assert_array_equal(ends[0], ends[1])


@pytest.mark.parametrize(
    ("optimizer", "moments"), [("adamw", "fp32"), ("adamw", "int8"), ("sgd", "fp32")]
)
def test_a_state_continues_bit_for_bit(bundle, optimizer, moments):
    train = TrainConfig(optimizer=optimizer)
    plan = StepPlan(moments=moments, threads=1)
    whole = opened(bundle, plan, train)
    losses(whole, bundle, 4)
    saved = {name: value.copy() for name, value in whole.state().items()}
    rest = losses(whole, bundle, 4, first=4)
    resumed = open_engine("stock", bundle, plan, train, LossConfig(anchor=0.1))
    resumed.load_state(saved)
    assert losses(resumed, bundle, 4, first=4) == rest
    for name, value in whole.state().items():
        np.testing.assert_array_equal(resumed.state()[name], value)


def test_the_state_of_another_optimiser_is_refused(bundle):
    state = opened(bundle, PLANS["fused"], TrainConfig(optimizer="sgd")).state()
    with pytest.raises(ConfigError, match="the checkpoint has no moment2"):
        opened(bundle, PLANS["fused"]).load_state(state)


def test_the_chunk_may_change_between_steps(bundle):
    steady, changed = opened(bundle, PLANS["fused"]), opened(bundle, PLANS["fused"])
    expected = losses(steady, bundle, 6)
    found = losses(changed, bundle, 2)
    changed.set_chunk(3)
    found += losses(changed, bundle, 2, first=2)
    changed.set_chunk(None)
    found += losses(changed, bundle, 2, first=4)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_untrained_ladder_is_zero_shot(bundle):
    engine = open_engine("stock", bundle, PLANS["fused"], TRAIN, LossConfig())
    inputs = problem(bundle)
    image = engine.encode_image(inputs.image_taps(0, 6), inputs.image_embedding, inputs.image_extra)
    text = engine.encode_text(inputs.text_taps(0, 5), inputs.text_embedding)
    zero_shot = inputs.image_embedding @ inputs.text_embedding.T
    assert np.abs(image @ text.T - zero_shot).max() < 1e-5


def test_encodings_do_not_depend_on_the_company(bundle):
    engine = opened(bundle, PLANS["fused"])
    inputs = problem(bundle)

    def encode(start: int, stop: int) -> np.ndarray:
        extra = {name: value[start:stop] for name, value in inputs.image_extra.items()}
        embedding = inputs.image_embedding[start:stop]
        return engine.encode_image(inputs.image_taps(start, stop), embedding, extra)

    pieces = np.concatenate([encode(0, 1), encode(1, 4), encode(4, 6)])
    np.testing.assert_allclose(pieces, encode(0, 6), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", installed_engines())
def test_golden_steps_are_the_hosts(bundle, name):
    result = replay(bundle, engine=name, threads=1)
    assert result["ok"], result
    assert result["engine"] == name


def test_an_unknown_engine_is_named(bundle):
    with pytest.raises(ConfigError, match="unknown engine 'fast'"):
        open_engine("fast", bundle, PLANS["fused"], TRAIN, LossConfig())


@pytest.mark.skipif(
    "ort-training" not in installed_engines(), reason="onnxruntime-training is not installed"
)
def test_ort_training_has_no_chunked_step(bundle):
    with pytest.raises(ConfigError, match="has no chunked step"):
        opened(bundle, PLANS["chunk 2"], name="ort-training")
