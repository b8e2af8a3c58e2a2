"""Temperature and calibration error, against a grid search and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from edgeladder.runtime.calibration import (
    OPTIMISM,
    SPREAD,
    TRUST,
    Calibration,
    fit_temperature,
    from_held_out,
    from_spread,
)
from edgeladder.runtime.logits import softmax


def overconfident(count: int, factor: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of four classes that are `factor` times as large as the truth."""
    generator = np.random.default_rng(seed)
    true = generator.normal(size=(count, 4)) * 1.5
    chance = softmax(true).cumsum(axis=1)
    labels = (generator.random(count)[:, None] > chance).sum(axis=1)
    return factor * true, np.minimum(labels, 3)


def loss(logits, labels, temperature):
    return -np.log(softmax(logits / temperature)[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize("factor", [0.2, 1.0, 25.0])
def test_the_temperature_is_the_one_that_a_grid_finds(factor):
    logits, labels = overconfident(400, factor)
    found = fit_temperature(logits, labels, expected=factor)
    grid = factor * np.exp(np.linspace(-1, 1, 2001))
    held = [400 * loss(logits, labels, t) + TRUST * np.log(t / factor) ** 2 for t in grid]
    best = grid[np.argmin(held)]
    assert found == pytest.approx(best, rel=0.02)
    assert found == pytest.approx(factor, rel=0.2)


def test_where_every_picture_is_right_the_expected_temperature_holds_it():
    """Log-loss alone would take it to zero, and one picture's confidence to a certainty."""
    logits = 40.0 * np.eye(4)
    found = fit_temperature(logits, np.arange(4), expected=8.0)
    assert 2.0 < found < 8.0
    more = fit_temperature(np.tile(logits, (50, 1)), np.tile(np.arange(4), 50), expected=8.0)
    assert more < found


def test_held_out_logits_are_taken_for_too_good_the_more_so_the_fewer():
    logits, labels = overconfident(400, 3.0)
    many, few = from_held_out(logits, labels, 3.0), from_held_out(logits[:16], labels[:16], 3.0)
    assert many.temperature == pytest.approx(
        fit_temperature(logits, labels, 3.0) * (1 + OPTIMISM / 100)
    )
    assert few.temperature == pytest.approx(
        fit_temperature(logits[:16], labels[:16], 3.0) * (1 + OPTIMISM / 4)
    )
    assert (many.pictures, few.pictures) == (400, 16)


def test_a_spread_is_of_the_classes_not_of_the_pictures():
    logits = np.array([[0.0, 2.0], [100.0, 102.0]])
    assert from_spread(logits).temperature == pytest.approx(SPREAD)
    assert from_spread(logits).pictures == 0
    assert from_spread(np.zeros((3, 2))).temperature > 0


@pytest.mark.parametrize("step", [1, 7, 300])
def test_the_expected_error_is_that_of_brute_force(step):
    logits, labels = overconfident(300, 3.0, seed=1)
    counted = Calibration()
    for start in range(0, 300, step):
        counted.add(labels[start : start + step], logits[start : start + step].astype(np.float32))
    counted.add(labels[:0], logits[:0])
    found = counted.result()
    shares = softmax(logits)
    sure, right = shares.max(axis=1), shares.argmax(axis=1) == labels
    error = 0.0
    for k in range(15):
        inside = (sure >= k / 15) & ((sure < (k + 1) / 15) | (k == 14))
        told = found.bins[k]
        assert told.count == inside.sum()
        if told.count:
            assert told.confidence == pytest.approx(sure[inside].mean(), abs=1e-5)
            assert told.accuracy == pytest.approx(right[inside].mean())
            error += inside.mean() * abs(sure[inside].mean() - right[inside].mean())
        else:
            assert told.confidence is None and told.accuracy is None
    assert found.expected_error == pytest.approx(error, abs=1e-5)
    assert found.negative_log_likelihood == pytest.approx(loss(logits, labels, 1.0), rel=1e-5)
    assert error > 0.1


def test_certain_and_wrong_is_a_finite_loss():
    counted = Calibration()
    counted.add(np.array([1]), np.array([[5000.0, 0.0]]))
    assert counted.result().negative_log_likelihood == pytest.approx(5000.0)
    assert Calibration().result() is None
