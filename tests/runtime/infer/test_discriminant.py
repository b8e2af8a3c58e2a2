"""Leaving folds out of a discriminant against fitting it anew without them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeladder.runtime.heads.discriminant import held_out_terms
from edgeladder.runtime.heads.kernel import normalise, shot_folds
from tests.runtime.infer.plain_heads import plain_held_out_terms


def rows_of(labels, width, seed):
    generator = np.random.default_rng(seed)
    means = generator.normal(size=(labels.max() + 1, width))
    return normalise(means[labels] + generator.normal(size=(len(labels), width)))


@settings(max_examples=30, deadline=None)
@given(
    counts=st.lists(st.integers(2, 7), min_size=2, max_size=5),
    width=st.sampled_from([3, 8, 60]),  # fewer and more channels than pictures
    views=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_rules_without_a_fold_are_rules_fitted_anew(counts, width, views, seed):
    pictures = np.repeat(np.arange(len(counts)), counts)
    labels = np.repeat(pictures, views)
    folds = shot_folds(labels, np.repeat(np.arange(len(pictures)), views))
    rows = rows_of(labels, width, seed)
    found = held_out_terms(rows, labels, folds, len(counts))
    expected = plain_held_out_terms(rows, labels, folds, len(counts))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_two_pictures_of_a_class_leave_the_nearest_of_one_each():
    labels = np.array([0, 0, 1, 1, 2, 2])
    rows = rows_of(labels, 5, 1)
    found = held_out_terms(rows, labels, shot_folds(labels), 3)
    expected = plain_held_out_terms(rows, labels, shot_folds(labels), 3)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("counts", [[1, 3], [1, 1]])
def test_a_fold_that_holds_a_whole_class_leaves_nothing_to_judge_it_by(counts):
    labels = np.repeat([0, 1], counts)
    assert held_out_terms(rows_of(labels, 4, 0), labels, shot_folds(labels), 2) is None
