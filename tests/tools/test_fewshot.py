"""The benchmark's own heads and sums: a baseline that is wrong would flatter the ladder."""

from __future__ import annotations

import numpy as np
import pytest

from tools.bench import baselines, figures
from tools.bench.task import Activations

Array = np.ndarray


def scene(shots: int, seed: int = 0) -> tuple[baselines.Support, Array, Array, Array]:
    """Pictures whose class means are off the text's by a shift that only pictures can tell."""
    generator = np.random.default_rng(seed)
    classes, width, before = 5, 24, 32
    text = generator.normal(size=(classes, width))
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    project = generator.normal(size=(before, width)) / before**0.5
    means = text @ np.linalg.pinv(project) + 0.25 * generator.normal(size=(classes, before))

    def draw(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        labels = np.repeat(np.arange(classes), count)
        pre = means[labels] + 0.25 * generator.normal(size=(len(labels), before))
        embedding = pre @ project
        norm = np.linalg.norm(embedding, axis=1, keepdims=True)
        return (
            np.float32(embedding / norm),
            np.float32(pre / norm),
            labels,
        )

    embedding, pre, labels = draw(shots)
    support = baselines.Support(embedding, labels, np.float32(text), 20.0, shots, pre)
    return support, *draw(60)


@pytest.mark.parametrize("name", baselines.METHODS)
def test_every_head_learns(name):
    support, embedding, pre, labels = scene(8)
    zero = (baselines.zero_shot(support)(embedding, pre).argmax(1) == labels).mean()
    share = (baselines.METHODS[name](support)(embedding, pre).argmax(1) == labels).mean()
    assert share >= zero + (0.0 if name == "zero-shot" else 0.02), (share, zero)


@pytest.mark.parametrize("name", baselines.METHODS)
def test_every_head_works_at_one_shot(name):
    support, embedding, pre, labels = scene(1)
    logits = baselines.METHODS[name](support)(embedding, pre)
    assert logits.shape == (len(labels), 5) and np.isfinite(logits).all()


@pytest.mark.parametrize("name", ["TaskRes", "ProLIP", "Tip-Adapter-F", "linear probe"])
def test_hand_written_gradients(name, monkeypatch):
    """A step of 1e-4 against the gradient lowers the loss on the support set by what it says."""
    support, *_ = scene(4)
    seen = []

    def one_look(parameters, gradients, *, steps, rate, decay=0.0):
        slopes = gradients(parameters)
        size = np.sqrt(sum(float((s**2).sum()) for s in slopes.values()))
        seen.append(size)
        return {n: p - sign[0] * 1e-3 * slopes[n] / size for n, p in parameters.items()}

    monkeypatch.setattr(baselines, "adam", one_look)
    losses = []
    for direction in (-1.0, 1.0):
        sign = [direction]
        if name == "linear probe":
            monkeypatch.setattr(baselines, "by_folds", lambda *_: 0.0)  # no decay: pure log-loss
        predictor = baselines.METHODS[name](support)
        logits = predictor(support.embedding, support.pre)
        losses.append(baselines.log_loss(np.float64(logits), support.labels))
    assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(seen[-1], rel=0.02)


def test_means_and_errors():
    rows = [
        {"dataset": d, "shots": 1, "method": "m", "accuracy": a}
        for d, a in [("x", 0.5), ("x", 0.7), ("y", 0.9), ("y", 0.9)]
    ]
    mean, error = figures.means(rows)["m", 1]
    assert mean == pytest.approx(75.0)
    assert error == pytest.approx(np.sqrt(np.var([50, 70], ddof=1) / 2) / 2)
    assert "75.0 ± 5.0" in figures.table(rows)
    drawing = figures.plot(rows)
    assert drawing.count("<polyline") == 1 and "nan" not in drawing


def test_differences_are_paired_by_seed():
    accuracy = {"plain": [0.2, 0.6], "more": [0.3, 0.8]}
    rows = [
        {"dataset": "x", "shots": 4, "seed": seed, "method": method, "accuracy": value}
        for method, values in accuracy.items()
        for seed, value in enumerate(values)
    ]
    rows.append({"dataset": "x", "shots": 8, "seed": 0, "method": "more", "accuracy": 1.0})
    text = figures.differences(rows, "plain")
    assert "| more | +15.0 ± 5.0 |" in text and "plain |" not in text
    assert "| 8" not in text  # nothing there to compare with


def test_pooled_taps_are_means_over_tokens_at_unit_length():
    draw = np.random.default_rng(0)
    taps = [draw.normal(size=(2, 5, 3, 4)), draw.normal(size=(1, 5, 3, 6))]  # (L, T, n, W)
    embedding = draw.normal(size=(3, 8))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    found = Activations(embedding, np.arange(3), taps, {}).pooled()
    for picture in range(3):
        parts = [taps[0][0][:, picture], taps[0][1][:, picture], taps[1][0][:, picture]]
        means = [sum(tokens) / 5 for tokens in parts]
        whole = [*(mean / np.sqrt((mean**2).sum()) for mean in means), embedding[picture]]
        np.testing.assert_allclose(found[picture], np.concatenate(whole) / 2, atol=1e-6)
