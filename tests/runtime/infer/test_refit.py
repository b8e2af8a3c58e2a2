"""A head fitted on all pictures in its sample's coordinates, against plain formulas."""

from __future__ import annotations

import numpy as np
import pytest

from edgeladder.runtime.heads.closed_form import KINDS, fit_gda, fit_head, head_arrays
from edgeladder.runtime.heads.discriminant import gda_rule, rule_of_moments, unit_spread
from edgeladder.runtime.heads.kernel import Kernel, balanced, centred, squared_distances
from edgeladder.runtime.heads.refit import refit
from edgeladder.runtime.logits import softmax
from tests.runtime.infer.test_heads import scene


def part(features, labels, zero_shot, rows):
    return [tap[rows] for tap in features], labels[rows], zero_shot[rows]


def in_windows(features, labels, zero_shot, size=7):
    for start in range(0, len(labels), size):
        yield part(features, labels, zero_shot, slice(start, start + size))


@pytest.mark.parametrize("kind", KINDS)
def test_over_its_own_sample_a_head_stays_what_it_is(kind):
    given = scene(shots=8, taps=3)
    head = fit_head(kind, *given)
    again = refit(head, given, in_windows(*given))
    wanted, found = (one.logits(given[0], given[2]) for one in (head, again))
    np.testing.assert_allclose(found, wanted, atol=2e-3 * np.abs(wanted).max())


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_kernel_is_ridge_over_its_supports_span_in_any_windows(size):
    features, labels, zero_shot = scene(shots=40)
    rows = balanced(labels, 30, 0)
    sample = part(features, labels, zero_shot, rows)
    kernel = fit_head("kernel", *sample)
    assert isinstance(kernel, Kernel)
    found = refit(kernel, sample, in_windows(features, labels, zero_shot, size))
    assert isinstance(found, Kernel)

    def gram(taps):
        total = 0.0
        for tap, support, scale, weight in zip(
            taps, kernel.support, kernel.scales, kernel.choice.weights, strict=True
        ):
            total = total + weight / scale * squared_distances(
                tap.astype(float), support.astype(float)
            )
        return np.exp(-total)

    across = gram(
        [centred(np.float32(t), c) for t, c in zip(features, kernel.centres, strict=True)]
    )
    own = gram(kernel.support)
    targets = np.eye(3)[labels] - softmax(kernel.choice.base * zero_shot)
    plain = np.linalg.lstsq(
        across.T @ across + kernel.choice.ridge * own, across.T @ targets, rcond=None
    )[0]
    np.testing.assert_allclose(across @ found.alpha, across @ plain, atol=1e-3)
    assert np.abs(across @ found.alpha - across @ kernel.alpha).max() > 0.02  # all teach it


def test_a_discriminant_whose_sample_spans_everything_is_that_of_all_rows():
    features, labels, zero_shot = scene(shots=40)
    sample = part(features, labels, zero_shot, balanced(labels, 60, 0))
    found = refit(fit_gda(*sample), sample, in_windows(features, labels, zero_shot))
    wanted = fit_gda(features, labels, zero_shot)
    np.testing.assert_allclose(found.matrix, wanted.matrix, atol=1e-4 * np.abs(wanted.matrix).max())
    np.testing.assert_allclose(found.bias, wanted.bias, atol=1e-4 * np.abs(wanted.bias).max())


@pytest.mark.parametrize("shots", [1, 5])
def test_moments_give_the_rule_of_the_rows(shots):
    features, labels, _ = scene(shots=shots)
    rows = features[-1]
    onehot = np.eye(3)[labels]
    found = rule_of_moments(rows.T @ rows, onehot.T @ rows, onehot.sum(axis=0), 0.0)
    for mine, plain in zip(found, unit_spread(*gda_rule(rows, labels, 3), rows), strict=True):
        np.testing.assert_allclose(mine, plain, atol=1e-9)


def test_what_lies_outside_the_samples_rows_widens_the_scatter():
    features, labels, zero_shot = scene(shots=40, width=200, noise=4.0)
    sample = part(features, labels, zero_shot, balanced(labels, 30, 0))
    rule = fit_gda(*sample)
    found = refit(rule, sample, in_windows(features, labels, zero_shot))
    assert np.linalg.matrix_rank(found.matrix) <= 3 and found.matrix.shape == rule.matrix.shape
    right = [
        float((one.logits(features, zero_shot).argmax(axis=1) == labels).mean())
        for one in (rule, found)
    ]
    assert right[1] > right[0]


def test_a_refitted_head_is_stored_in_as_many_bytes():
    given = scene(shots=40)
    sample = part(*given, balanced(given[1], 30, 0))
    head = fit_head("blend", *sample)
    found = refit(head, sample, in_windows(*given))
    first, second = (head_arrays(one)[0] for one in (head, found))
    assert {n: a.shape for n, a in first.items()} == {n: a.shape for n, a in second.items()}
    assert found.held_out is not None  # what temperature and weights are chosen by
