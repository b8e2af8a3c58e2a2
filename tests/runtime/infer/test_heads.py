"""Closed-form heads against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeladder.core.errors import IntegrityError
from edgeladder.runtime.heads import kernel as kernel_module
from edgeladder.runtime.heads import kernel_search
from edgeladder.runtime.heads.blend import choose_head_weight, fit_weights, log_loss
from edgeladder.runtime.heads.closed_form import (
    KINDS,
    fit_gda,
    fit_head,
    head_arrays,
    head_from,
)
from edgeladder.runtime.heads.discriminant import gda_rule
from edgeladder.runtime.heads.fit_head import fixed_head_weight
from edgeladder.runtime.heads.kernel import (
    Kernel,
    fit_kernel,
    fit_proker,
    normalise,
    shot_folds,
    squared_distances,
)
from edgeladder.runtime.heads.leave_out import Folds, inverse_factor, leave_out
from edgeladder.runtime.logits import softmax
from tests.runtime.infer.plain_heads import PlainSearch


def scene(shots=4, classes=3, width=12, taps=2, seed=0, noise=0.8):
    """Support features per tap (the last is the embedding), labels and zero-shot logits."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), shots)
    features = []
    for _ in range(taps + 1):
        means = generator.normal(size=(classes, width))
        features.append(means[labels] + noise * generator.normal(size=(len(labels), width)))
    zero_shot = 1.5 * np.eye(classes)[labels] + generator.normal(size=(len(labels), classes))
    return features, labels, zero_shot


def test_closed_form_leave_one_out_is_real_leave_one_out():
    features, labels, zero_shot = scene()
    rows = normalise(features[-1])
    kernel = np.exp(-squared_distances(rows, rows))
    targets = np.eye(3)[labels] - softmax(zero_shot)
    ridge = 0.3
    fast = leave_out(inverse_factor(kernel, ridge), targets, Folds.of(np.arange(len(labels))))
    for i in range(len(labels)):
        rest = np.arange(len(labels)) != i
        alpha = np.linalg.solve(
            kernel[np.ix_(rest, rest)] + ridge * np.eye(rest.sum()), targets[rest]
        )
        np.testing.assert_allclose(fast[i], kernel[i, rest] @ alpha, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(
    counts=st.lists(st.integers(2, 6), min_size=2, max_size=4),
    more=st.sampled_from([0, 90]),  # so many that the factorisation goes by halves
    seed=st.integers(0, 99),
)
def test_closed_form_leaving_out_folds_is_refitting_without_them(counts, more, seed):
    labels = np.repeat(np.arange(len(counts)), np.add(counts, [more] + [0] * (len(counts) - 1)))
    labels = labels[np.argsort(shot_folds(labels), kind="stable")]
    folds = shot_folds(labels)
    rows = normalise(np.random.default_rng(seed).normal(size=(len(labels), 12)))
    kernel = np.exp(-squared_distances(rows, rows))
    targets = np.eye(len(counts))[labels]
    fast = leave_out(inverse_factor(kernel, 1.0), targets, Folds.of(folds))
    for fold in range(max(counts)):
        out = folds == fold
        alpha = np.linalg.solve(kernel[np.ix_(~out, ~out)] + np.eye((~out).sum()), targets[~out])
        np.testing.assert_allclose(fast[out], kernel[np.ix_(out, ~out)] @ alpha, atol=1e-9)


def test_folds_leave_out_one_picture_of_every_class():
    labels = np.repeat(np.arange(3), 4)
    folds = shot_folds(labels)
    assert [list(labels[folds == f]) for f in range(4)] == [[0, 1, 2]] * 4


def test_views_of_a_picture_are_left_out_together():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    pictures = np.array([5, 5, 9, 9, 2, 2, 7, 7])
    assert shot_folds(labels, pictures).tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_kernel_logits_are_kernel_ridge_solved_directly():
    features, labels, zero_shot = scene(shots=6)
    head = fit_kernel(features, labels, zero_shot)
    queries, _, query_zero_shot = scene(shots=2, seed=9)
    distance = 0.0
    support = 0.0
    for weight, tap, query in zip(head.choice.weights, features, queries, strict=True):
        centre = 0.7 * normalise(tap).mean(0)
        rows, asked = normalise(normalise(tap) - centre), normalise(normalise(query) - centre)
        n = len(rows)
        within = squared_distances(rows, rows)
        scale = within.sum() / (n * (n - 1))
        support = support + weight * within / scale
        distance = distance + weight * squared_distances(asked, rows) / scale
    targets = np.eye(3)[labels] - softmax(head.choice.base * zero_shot)
    alpha = np.linalg.solve(np.exp(-support) + head.choice.ridge * np.eye(len(labels)), targets)
    expected = (
        head.choice.prior * query_zero_shot + head.choice.temperature * np.exp(-distance) @ alpha
    )
    # rows and distances are float32
    np.testing.assert_allclose(head.logits(queries, query_zero_shot), expected, atol=1e-5)


def test_the_held_out_loss_is_the_loss_of_refitted_kernels():
    """The loss a choice was made by equals that of heads refitted without each picture."""
    features, labels, zero_shot = scene(shots=4)
    head = fit_kernel(features, labels, zero_shot)
    assert head.held_out is not None
    assert log_loss(head.held_out, labels) == pytest.approx(head.choice.loss)


@pytest.mark.parametrize("few", [0, 1000])  # looked at in float32 first, or judged at once
@pytest.mark.parametrize(("shots", "classes", "noise"), [(12, 5, 2.0), (20, 3, 1.2), (6, 9, 0.4)])
def test_the_search_chooses_what_a_plain_one_does(monkeypatch, few, shots, classes, noise):
    features, labels, zero_shot = scene(shots=shots, classes=classes, seed=shots, noise=noise)
    folds = shot_folds(labels)
    monkeypatch.setattr(kernel_search, "_FEW", few)
    found = fit_kernel(features, labels, zero_shot, folds=folds)
    monkeypatch.setattr(kernel_module, "Search", PlainSearch)
    expected = fit_kernel(features, labels, zero_shot, folds=folds)
    assert found.choice.weights == expected.choice.weights
    assert (found.choice.ridge, found.choice.base) == (expected.choice.ridge, expected.choice.base)
    np.testing.assert_allclose(found.held_out, expected.held_out, atol=1e-4)
    queries, _, asked = scene(shots=2, classes=classes, seed=9)
    np.testing.assert_allclose(
        found.logits(queries, asked), expected.logits(queries, asked), atol=1e-4
    )


def test_the_support_set_finds_the_tap_that_carries_the_signal():
    generator = np.random.default_rng(3)
    features, labels, zero_shot = scene(shots=8, classes=4, seed=3)
    noise = [generator.normal(size=f.shape) for f in features]
    mixed = [noise[0], features[1], noise[2]]  # signal in the middle tap only
    head = fit_kernel(mixed, labels, np.zeros_like(zero_shot))
    assert head.choice.weights[1] > 2 * max(head.choice.weights[0], head.choice.weights[2])


@pytest.mark.parametrize("width", [6, 40])  # fewer and more channels than pictures
def test_gda_rule_is_the_published_formula(width):
    features, labels, _ = scene(shots=5, width=width)
    rows = normalise(features[-1])
    matrix, bias = gda_rule(rows, labels, 3)
    means = np.stack([rows[labels == c].mean(0) for c in range(3)])
    residual = rows - means[labels]
    covariance = np.cov(residual.T)
    n, width = rows.shape
    precision = width * np.linalg.pinv((n - 1) * covariance + np.trace(covariance) * np.eye(width))
    np.testing.assert_allclose(matrix, precision @ means.T, rtol=1e-8)
    np.testing.assert_allclose(bias, -0.5 * np.diag(means @ precision @ means.T), rtol=1e-8)


@pytest.mark.parametrize(
    ("shots", "classes", "chosen"), [(1, 3, False), (2, 3, False), (3, 3, True), (2, 50, True)]
)
def test_taps_are_chosen_where_enough_pictures_judge_them(shots, classes, chosen):
    features, labels, zero_shot = scene(shots=shots, classes=classes)
    head = fit_kernel(features, labels, zero_shot, folds=shot_folds(labels))
    assert np.isfinite(head.choice.loss) == chosen
    if not chosen:
        assert len(set(head.choice.weights)) == 1
    alone = fit_proker(features[-1], labels, zero_shot, folds=shot_folds(labels))
    assert np.isfinite(alone.choice.loss) == (shots > 1)


def test_gda_with_one_picture_a_class_is_nearest_mean_beside_zero_shot():
    features, labels, zero_shot = scene(shots=1)
    head = fit_gda(features, labels, zero_shot)
    distance = squared_distances(normalise(features[-1]), normalise(features[-1]))
    term = head.logits(features, np.zeros_like(zero_shot))
    assert (term.argmax(1) == distance.argmin(1)).all()
    assert np.isfinite(term).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shots", [1, 2, 6])
def test_heads_survive_being_stored(kind, shots):
    features, labels, zero_shot = scene(shots=shots)
    head = fit_head(kind, features, labels, zero_shot)
    arrays, values = head_arrays(head)
    again = head_from(arrays, values)
    queries, _, given_zero_shot = scene(shots=3, seed=5)
    np.testing.assert_allclose(
        again.logits(queries, given_zero_shot), head.logits(queries, given_zero_shot), atol=0.05
    )
    with pytest.raises(IntegrityError, match="lacks"):
        head_from({}, values)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_learn_what_zero_shot_does_not_know(kind):
    features, labels, _ = scene(shots=8, noise=0.5)
    blind = np.zeros((len(labels), 3))
    head = fit_head(kind, features, labels, blind)
    queries, asked, _ = scene(shots=8, noise=0.5)
    queries = [q + 0.1 * np.random.default_rng(1).normal(size=q.shape) for q in queries]
    assert (head.logits(queries, blind).argmax(1) == asked).mean() > 0.9


def test_a_fixed_weight_counts_in_proportion_below_its_number_of_pictures():
    assert fixed_head_weight(None, None, 40, 10) == 1.0
    assert fixed_head_weight(32.0, None, 10, 10) == 32.0
    assert [fixed_head_weight(32.0, 8, shots * 10, 10) for shots in (1, 2, 8, 16)] == [4, 8, 32, 32]


def test_fit_weights_reaches_the_grid_optimum():
    _, labels, first = scene(shots=20, seed=1)
    second = scene(shots=20, seed=2)[2] * 0.3
    weights, loss = fit_weights([first, second], labels)
    grid = [
        log_loss(a * first + b * second, labels)
        for a in np.linspace(0, 4, 81)
        for b in np.linspace(0, 12, 81)
    ]
    assert loss <= min(grid) + 1e-3
    assert (weights >= 0).all()


def test_a_term_that_misleads_gets_no_weight():
    _, labels, good = scene(shots=20, seed=1)
    weights, _ = fit_weights([good, -good + 0.1 * scene(shots=20, seed=4)[2]], labels)
    assert weights[1] == pytest.approx(0, abs=1e-6) or weights[0] > weights[1]
    assert choose_head_weight(good, np.random.default_rng(0).normal(size=good.shape), labels) < 0.5


def test_many_pictures_are_searched_on_a_sample_and_fitted_whole(monkeypatch):
    monkeypatch.setattr(kernel_module, "SEARCH_PICTURES", 30)
    features, labels, zero_shot = scene(shots=25, classes=3, taps=1, width=4)
    head = fit_kernel(features, labels, zero_shot, folds=shot_folds(labels))
    assert isinstance(head, Kernel)
    assert head.alpha.shape == (75, 3)
    assert head.held_out is None


def test_a_confident_and_wrong_zero_shot_does_not_spoil_the_kernel():
    """Residuals of such logits would have to be unlearnt: the base must give way."""
    features, labels, _ = scene(shots=6)
    wrong = 30.0 * np.random.default_rng(1).normal(size=(len(labels), 3))
    head = fit_kernel(features, labels, wrong, folds=shot_folds(labels))
    plain = fit_kernel(features, labels, np.zeros_like(wrong), folds=shot_folds(labels))

    def share(fitted):
        return (fitted.held_out.argmax(1) == labels).mean()

    assert head.choice.base * 30 < 1.0
    assert share(head) >= share(plain) - 0.06


def test_a_blend_is_the_mean_of_its_heads_and_gda_reads_what_it_is_told():
    features, labels, zero_shot = scene(shots=5)
    head = fit_head("blend", features, labels, zero_shot, projected=True)
    queries, _, asked = scene(shots=2, seed=9)
    first, second = head.heads
    expected = (first.logits(queries, asked) + second.logits(queries, asked)) / 2
    np.testing.assert_allclose(head.logits(queries, asked), expected, atol=1e-12)
    assert second.reads == (-3, -2)
    changed = [*queries[:-1], np.zeros_like(queries[-1])]
    np.testing.assert_array_equal(second.logits(changed, asked), second.logits(queries, asked))
