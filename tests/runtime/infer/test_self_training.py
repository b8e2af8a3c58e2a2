"""Pseudo-labels in passes: the first is the plain one, the next learns from what it found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeladder.budget import policy
from edgeladder.runtime.heads.pseudo_labels import find_pseudo_labels
from edgeladder.runtime.heads.self_training import SelfTraining, self_train
from tests.runtime.infer.test_pseudo_labels import blend, world

SUPPORT, POOL = world(2, noise=2.0), world(40, seed=2, noise=2.0)
COUNT = len(POOL.labels)


def found(passes, told=lambda done: None, pool=POOL.rows, **options):
    how = SelfTraining(passes=passes, even=True, **options)
    return self_train(blend(SUPPORT), SUPPORT, pool, COUNT, how, told)


def test_one_pass_is_the_plain_one():
    plain = find_pseudo_labels(blend(SUPPORT), SUPPORT, POOL.rows, COUNT, even=True)
    np.testing.assert_array_equal(found(1).labels, plain.labels)


def test_a_further_pass_begins_with_a_head_on_what_was_found():
    """By the parts: a head on labels and pseudo-labels, and one more plain pass with it."""
    first = found(1).labels
    given = first >= 0
    both = SUPPORT.followed_by(POOL.rows(given))
    both.labels[len(SUPPORT.labels) :] = first[given]
    plain = find_pseudo_labels(blend(both), SUPPORT, POOL.rows, COUNT, even=True)
    np.testing.assert_array_equal(found(2).labels, plain.labels)
    assert (plain.labels != first).any()


def told_apart_by_the_last_tap(counts, seed):
    """Pictures whose other taps and names say nothing."""
    inputs, chance = world(counts, seed=seed, noise=2.0), np.random.default_rng(seed + 7)
    for tap in inputs.features[:-1]:
        tap[:] = 3 * chance.normal(size=tap.shape)
    return replace(inputs, zero_shot=np.zeros_like(inputs.zero_shot))


def test_further_passes_find_the_tap_that_tells_classes_apart():
    """Share of right labels among those given, mean over worlds."""
    right = {1: [], 3: []}
    for seed in range(8):
        support = told_apart_by_the_last_tap(2, 100 + seed)
        pool = told_apart_by_the_last_tap(60, 200 + seed)
        for passes, kept in right.items():
            how = SelfTraining(passes=passes, even=True)
            labels = self_train(blend(support), support, pool.rows, len(pool.labels), how).labels
            kept.append((labels == pool.labels)[labels >= 0].mean())
    assert np.mean(right[3]) > np.mean(right[1]) + 0.03


def test_where_a_pass_finds_nothing_the_next_one_has_nothing_to_learn():
    looked_at = []

    def some(rows):
        looked_at.append(len(rows))
        return POOL.rows(rows)

    nothing = found(3, pool=some, surest=0.0)
    assert (nothing.labels == -1).all() and looked_at == [COUNT]


def test_progress_goes_on_from_pass_to_pass():
    told = []
    found(3, told.append, most=60)
    assert told == sorted(told) and told[-1] == 3 * COUNT


def test_what_a_pass_holds_stays_within_its_sizes():
    looked_at = []

    def some(rows):
        looked_at.append(len(rows))
        return POOL.rows(rows)

    found(3, pool=some, most=60, fitted_on=30)
    assert max(looked_at) <= 60 and 30 - len(SUPPORT.labels) in looked_at


def test_passes_where_few_are_labelled_and_classes_are_said_to_be_even():
    below = policy.SELF_TRAINING_BELOW
    assert policy.self_training_passes(True, below * 3 - 1, 3) == policy.SELF_TRAINING_PASSES
    assert policy.self_training_passes(True, below * 3, 3) == 1
    assert policy.self_training_passes(False, 3, 3) == 1
