"""Labels for unlabelled pictures, against plain formulas and against what they really are."""

from __future__ import annotations

import numpy as np
import pytest

from edgeladder.runtime.heads.closed_form import beside, fit_head
from edgeladder.runtime.heads.discriminant import gda_rule, unit_spread
from edgeladder.runtime.heads.fit_head import head_sample
from edgeladder.runtime.heads.head_inputs import HeadInputs
from edgeladder.runtime.heads.kernel import centred, squared_distances
from edgeladder.runtime.heads.pseudo_labels import (
    _Portion,
    _surest,
    find_pseudo_labels,
    likely_proportions,
    scaled,
)
from edgeladder.runtime.logits import softmax

CLASSES, TAPS, WIDTH = 3, 3, 24


def world(counts, seed=1, noise=0.9, classes=CLASSES, shift=0.0):
    """Pictures of some classes, the same ones whatever the seed; features per tap as heads read."""
    means = np.random.default_rng(0).normal(size=(TAPS, classes, WIDTH)) + shift
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), counts)
    features = [
        mean[labels] + noise * generator.normal(size=(len(labels), WIDTH)) for mean in means
    ]
    zero_shot = np.eye(classes)[labels] + generator.normal(size=(len(labels), classes))
    return HeadInputs(features, labels, zero_shot)


def blend(inputs):
    return fit_head("blend", inputs.features, inputs.labels, inputs.zero_shot)


def labelled(support, pool, **options):
    found = find_pseudo_labels(blend(support), support, pool.rows, len(pool.labels), **options)
    assert found.labels.shape == pool.labels.shape and found.labels.dtype == np.int32
    return found


def test_scaled_shares_have_both_margins():
    logits = np.random.default_rng(0).normal(size=(40, 4)) * 2
    wanted = np.array([0.1, 0.2, 0.3, 0.4])
    shares = scaled(logits, wanted)
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_allclose(shares.sum(axis=0), 40 * wanted, rtol=1e-3)
    # of all such matrices it is the one that is softmax's, rows and columns scaled
    ratio = shares / softmax(logits)
    np.testing.assert_allclose(ratio / ratio[:, :1], (ratio / ratio[:, :1])[:1].repeat(40, 0))


def test_proportions_go_towards_the_truth_and_stay_where_nothing_says_so():
    labels = np.repeat([0, 1, 2], [80, 15, 5])
    chances = softmax(8.0 * np.eye(3)[labels])
    truth = np.bincount(labels) / 100
    for prior in (0.0, 4.0):
        expected = (truth + prior / 3) / (1 + prior)
        np.testing.assert_allclose(likely_proportions(chances, prior), expected, atol=0.01)
    np.testing.assert_allclose(likely_proportions(np.full((9, 3), 1 / 3), 4.0), np.full(3, 1 / 3))


def test_a_round_is_ridge_and_discriminant_on_all_pictures_with_soft_labels():
    support, pool = world(6), world(9, seed=2)
    head = blend(support)
    portion = _Portion(head, support, pool)
    shares = softmax(np.random.default_rng(3).normal(size=(27, CLASSES)))
    weights = np.linspace(0.1, 0.6, 27)
    kernel, rule = head.heads
    both = support.followed_by(pool)

    total = 0.0
    for tap, centre, scale, weight in zip(
        both.features, kernel.centres, kernel.scales, kernel.choice.weights, strict=True
    ):
        if weight:
            rows = centred(np.float32(tap), centre).astype(float)
            total = total + weight / scale * squared_distances(rows, rows)
    gram, choice = np.exp(-total), kernel.choice
    targets = np.concatenate([np.eye(CLASSES)[support.labels], shares])
    counts = np.concatenate([np.ones(18), weights])
    # weighted least squares: W^1/2 (K alpha - R) with ridge alpha^T K alpha
    root = np.sqrt(counts)[:, None]
    inner = root * gram * root.T + choice.ridge * np.eye(45)
    alpha = root * np.linalg.solve(inner, root * (targets - softmax(choice.base * both.zero_shot)))
    first = choice.prior * pool.zero_shot + choice.temperature * (gram[18:] @ alpha)

    rows = beside(both.features, rule.reads)
    members = targets * counts[:, None]
    means = (members.T @ rows) / members.sum(axis=0)[:, None]
    scatter = (rows * counts[:, None]).T @ rows - (means.T * members.sum(axis=0)) @ means
    trace = np.trace(scatter) / (counts.sum() - 1)
    matrix = np.linalg.solve(scatter + trace * np.eye(rows.shape[1]), means.T)
    term = rows @ matrix - 0.5 * np.einsum("cd,dc->c", means, matrix)
    apart = term - term.mean(axis=1, keepdims=True)
    spread = np.sqrt((counts[:, None] * apart**2).sum() / (counts.sum() * CLASSES))
    second = rule.prior * pool.zero_shot + rule.weight * term[18:] / spread

    np.testing.assert_allclose(portion._fitted(shares, weights), (first + second) / 2, atol=1e-4)


def test_certain_labels_of_full_weight_are_labels():
    support, pool = world(6), world(9, seed=2)
    portion = _Portion(blend(support), support, pool)
    fitted = portion._fitted(np.eye(CLASSES)[pool.labels], np.ones(27))
    rule = portion._rule
    both = support.followed_by(pool)
    rows = beside(both.features, rule.reads)
    matrix, bias = unit_spread(*gda_rule(rows, both.labels, CLASSES), rows)
    second = rule.prior * pool.zero_shot + rule.weight * (rows[18:] @ matrix + bias)
    first = 2 * fitted - second
    assert (first.argmax(axis=1) == pool.labels).mean() > 0.9  # it has seen them


@pytest.mark.parametrize("even", [True, False])
def test_what_gets_a_label_is_what_it_is(even):
    support, pool = world(4, noise=2.5), world(40, seed=2, noise=2.5)
    found = labelled(support, pool, even=even)
    given = found.labels >= 0
    assert 0.4 < given.mean() <= 0.61
    right = (found.labels == pool.labels)[given].mean()
    plain = (
        blend(support).logits(pool.features, pool.zero_shot).argmax(axis=1) == pool.labels
    ).mean()
    assert right > plain + 0.05


def test_pictures_of_another_world_get_none():
    support = world(8)
    pool = world(30, seed=2).followed_by(world(30, seed=3, shift=6.0))
    found = labelled(support, pool)
    assert found.strange >= 85 and (found.labels[90:] < 0).all() and (found.labels[:90] >= 0).any()


def test_rare_classes_are_not_filled_with_common_ones():
    support, pool = world(8), world([120, 12, 12], seed=2)
    found = labelled(support, pool)
    assert found.proportions[0] > found.proportions[1:].max()
    given = found.labels >= 0
    assert (found.labels == pool.labels)[given].mean() > 0.95


def test_memory_bounds_what_is_looked_at_together_and_hardly_what_comes_of_it():
    support, pool = world(4), world(60, seed=2)
    looked_at = []

    def some(rows):
        looked_at.append(len(rows))
        return pool.rows(rows)

    head = blend(support)
    told = []
    found = find_pseudo_labels(head, support, some, 180, most=60, told=told.append)
    assert max(looked_at[1:]) <= 48 and told[-1] == 180 and len(told) == 4
    whole = labelled(support, pool, most=600)
    both = (found.labels >= 0) & (whole.labels >= 0)
    assert both.sum() > 60 and (found.labels == whole.labels)[both].mean() > 0.95


def test_many_labelled_pictures_leave_room_for_others():
    support, pool = world(50), world(30, seed=2)
    found = labelled(support, pool, most=90)
    given = found.labels >= 0
    assert given.sum() > 30 and (found.labels == pool.labels)[given].mean() > 0.95


def test_the_surest_of_a_class_are_counted_among_all_that_look_like_it():
    taken = np.array([0, 0, 0, -2, -2, 1, 1, 1, 1, 1])  # -2: of class 0, but no label
    sureness = np.array([0.9, 0.8, 0.7, 0.95, 0.6, 0.5, 0.6, 0.7, 0.8, 0.9])
    labels = _surest(taken, sureness, 0.6)
    assert labels.tolist() == [0, 0, -1, -1, -1, -1, -1, 1, 1, 1]


def test_a_heads_sample_keeps_half_for_those_with_a_label():
    labels = np.concatenate([np.repeat([0, 1], 50), np.repeat([0, 1], 200)])
    rows = head_sample(labels, 100, 60, 0)
    assert len(rows) == 60 and (rows < 100).sum() == 30
    assert np.bincount(labels[rows]).tolist() == [30, 30]
    assert head_sample(labels[:100], 100, 60, 0).tolist() == sorted(
        head_sample(labels[:100], 100, 60, 0)
    )
    assert len(head_sample(labels, 100, 1000, 0)) == 500
    few = np.concatenate([np.repeat([0, 1], 4), np.repeat([0, 1], 200)])
    assert (head_sample(few, 8, 60, 0) < 8).sum() == 8
