"""Soft targets against the loss they stand for, by brute force in float64."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgeladder.core.config import LossConfig
from edgeladder.runtime.engine.targets import soft_targets
from edgeladder.runtime.logits import ClassLogits

SCALE = 12.0


@pytest.fixture
def inputs() -> SimpleNamespace:
    random = np.random.default_rng(0)
    image, text = random.normal(size=(4, 6)), random.normal(size=(5, 6))
    return SimpleNamespace(
        labels=np.array([2, 0, 4, 2]),
        image_embedding=(image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float32),
        text_embedding=(text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32),
        image_extra={},
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def objective(logits: np.ndarray, inputs: SimpleNamespace, loss: LossConfig) -> float:
    """Cross-entropy with label smoothing plus anchor * KL(zero-shot || tuned), as written."""
    tuned = log_softmax(logits)
    zero_shot = log_softmax(
        SCALE * inputs.image_embedding.astype(float) @ inputs.text_embedding.T.astype(float)
    )
    hard = -tuned[np.arange(len(tuned)), inputs.labels]
    spread = -tuned.mean(axis=1)
    divergence = (np.exp(zero_shot) * (zero_shot - tuned)).sum(axis=1)
    smoothed = (1 - loss.smoothing) * hard + loss.smoothing * spread
    return float((smoothed + loss.anchor * divergence).mean())


@pytest.mark.parametrize("anchor", [0.0, 0.7])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_gradient_is_that_of_the_written_loss(inputs, anchor, smoothing):
    loss = LossConfig(anchor=anchor, smoothing=smoothing)
    targets = soft_targets(inputs, loss, ClassLogits(SCALE)).astype(float)
    logits = np.random.default_rng(1).normal(size=targets.shape) * 3
    # of -(targets * log_softmax(logits)).sum(1).mean(), which is what the graphs compute
    ours = (targets.sum(1, keepdims=True) * np.exp(log_softmax(logits)) - targets) / len(targets)
    step = 1e-5
    for index in np.ndindex(*logits.shape):
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[index] += sign * step
            ends.append(objective(moved, inputs, loss))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(ours[index], abs=2e-7)


def test_plain_targets_are_the_labels(inputs):
    targets = soft_targets(inputs, LossConfig(), ClassLogits(SCALE))
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets, np.eye(5)[inputs.labels])


def test_rows_sum_to_one_plus_the_anchor(inputs):
    targets = soft_targets(inputs, LossConfig(anchor=0.5, smoothing=0.1), ClassLogits(SCALE))
    np.testing.assert_allclose(targets.sum(1), 1.5, rtol=1e-6)
