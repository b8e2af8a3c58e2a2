"""How probable each given label is, by models that did not see the picture.

Gaussian discriminant analysis (arXiv:2402.04087) on a class-balanced sample, in folds, in its dual
form: all it needs of the features is their Gram matrix, so memory is the sample squared, whatever
the features' width. What is not in the sample is judged by a fit on all of it. Labels that a first
pass finds improbable count in part only in a second one (expectation maximisation with the noise
rate fixed), so that wrong ones do not vouch for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeladder.runtime.heads.blend import fit_weights
from edgeladder.runtime.heads.kernel import balanced
from edgeladder.runtime.logits import softmax

Array = np.ndarray

FOLDS = 16
REPEATS = 2  # foldings whose scores are averaged: one alone depends on who is left out with whom
NOISE = 0.1  # of labels that are taken to be wrong; 0.05 and 0.2 rank alike
_BLOCK = 256  # pictures outside the sample that are judged at a time


@dataclass(frozen=True)
class HeldOut:
    """Of n pictures: the label's probability and the most probable class's."""

    given: Array  # (n,)
    best: Array  # (n,) class index
    best_probability: Array  # (n,)


def held_out_labels(
    features: Callable[[Array], Array],
    zero_shot: Callable[[Array], Array],
    labels: Array,
    classes: int,
    *,
    most: int,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> HeldOut:
    """Judge every label.

    Args:
        features: rows -> (m, W) at unit length, float16.
        zero_shot: rows -> (m, C) logits.
        labels: (n,) class indices; classes with fewer than two pictures are not judged (NaN).
        classes: C.
        most: pictures that a fit holds, at most.
        seed: of sample and folds.
        on_step: called between two fits; may raise to stop.
    """
    labels = np.asarray(labels, np.int64)
    found = HeldOut(np.full(len(labels), np.nan), labels.copy(), np.full(len(labels), np.nan))
    counts = np.bincount(labels, minlength=classes)
    known = np.flatnonzero(counts >= 2)
    if len(known) < 2:
        return found
    column = np.full(classes, -1)
    column[known] = np.arange(len(known))
    rows = np.flatnonzero(column[labels] >= 0)
    sample = rows[balanced(labels[rows], most, seed)]
    # a class of which the sample holds one picture cannot lose it to a fold
    enough = np.bincount(labels[sample], minlength=classes)[labels[sample]] >= 2
    sample = sample[enough]
    inner = column[labels[sample]]
    support = features(sample)
    gram = _gram(support, support)
    prior = zero_shot(sample)[:, known]
    member = np.eye(len(known))[inner]
    folds = [_folds(inner, seed + repeat) for repeat in range(REPEATS)]
    term = _scores(gram, member, folds, on_step)
    weights, _ = fit_weights([term, prior], inner)
    shares = softmax(weights[0] * term + weights[1] * prior)
    soft = _cleaned(shares, member)
    term = _scores(gram, soft, folds, on_step)
    weights, _ = fit_weights([term, prior], inner)
    _keep(found, sample, softmax(weights[0] * term + weights[1] * prior), inner, known)
    rest = np.setdiff1d(rows, sample)
    if len(rest):
        rule = _fit(gram, soft)
        for start in range(0, len(rest), _BLOCK):
            block = rest[start : start + _BLOCK]
            outer = rule.scores(_gram(features(block), support))
            logits = weights[0] * outer + weights[1] * zero_shot(block)[:, known]
            _keep(found, block, softmax(logits), column[labels[block]], known)
            on_step()
    return found


def _gram(left: Array, right: Array) -> Array:
    """Inner products (n, m) float64 of float16 rows, some at a time."""
    out = np.empty((len(left), len(right)))
    for top in range(0, len(left), _BLOCK):
        some = left[top : top + _BLOCK].astype(np.float32)
        for first in range(0, len(right), _BLOCK):
            other = right[first : first + _BLOCK].astype(np.float32)
            out[top : top + _BLOCK, first : first + _BLOCK] = some @ other.T
    return out


def _folds(labels: Array, seed: int) -> Array:
    """Fold of each row, every class spread over the folds; (n,)."""
    generator = np.random.default_rng(seed)
    folds = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        folds[rows] = np.arange(len(rows)) % min(FOLDS, max(2, len(rows)))
    return folds


@dataclass(frozen=True)
class _Rule:
    """GDA in its dual form: `scores = (k B / trace + b) / spread`, k (m, n) against the support."""

    dual: Array  # B (n, C)
    bias: Array  # b (C,)
    spread: float

    def scores(self, gram: Array) -> Array:
        """Class scores (m, C) in units of their spread over the support."""
        return np.asarray((gram @ self.dual + self.bias) / self.spread)


def _fit(gram: Array, member: Array) -> _Rule:
    """Fit on support rows with (soft) class memberships (n, C), given their Gram matrix (n, n).

    Means M = N^T X with N the memberships' columns at sum 1, residuals R = A X with
    A = I - member N^T; with t the scatter's trace over n - 1 as ridge,
    `(R^T R + t I)^-1 = (I - R^T (R R^T + t I)^-1 R) / t`, so `W = X^T B / t` with
    `B = N - A^T (A K A^T + t I)^-1 A K N`.
    """
    count = len(gram)
    mean = member / np.maximum(member.sum(axis=0), 1e-9)  # N
    products = gram @ mean  # K N
    # A K A^T without a product of two n x n matrices
    crossed = products @ member.T
    scatter = gram - crossed - crossed.T + member @ (mean.T @ products) @ member.T
    trace = float(np.trace(scatter)) / max(count - 1, 1)
    if trace < 1e-9:
        dual, trace = mean, 1.0
    else:
        scatter[np.diag_indices(count)] += trace
        inner = np.linalg.solve(scatter, products - member @ (mean.T @ products))
        dual = mean - inner + mean @ (member.T @ inner)
    dual = dual / trace
    bias = -0.5 * np.einsum("nc,nc->c", products, dual)
    scores = gram @ dual + bias
    spread = float((scores - scores.mean(axis=1, keepdims=True)).std())
    return _Rule(dual, bias, max(spread, 1e-12))


def _scores(
    gram: Array, member: Array, foldings: list[Array], on_step: Callable[[], None]
) -> Array:
    """Scores (n, C) of every row by fits without its fold, the mean over the foldings."""
    total = np.zeros(member.shape)
    for folds in foldings:
        for fold in np.unique(folds):
            out = folds == fold
            rule = _fit(gram[np.ix_(~out, ~out)], member[~out])
            total[out] += rule.scores(gram[np.ix_(out, ~out)])
            on_step()
    return total / len(foldings)


def _cleaned(shares: Array, member: Array) -> Array:
    """What each row's class is, given its label and held-out shares (n, C): soft memberships."""
    others = max(member.shape[1] - 1, 1)
    chance = shares * np.where(member > 0, 1 - NOISE, NOISE / others)
    return np.asarray(chance / chance.sum(axis=1, keepdims=True))


def _keep(found: HeldOut, rows: Array, shares: Array, inner: Array, known: Array) -> None:
    at = np.arange(len(rows))
    best = shares.argmax(axis=1)
    found.given[rows] = shares[at, inner]
    found.best[rows] = known[best]
    found.best_probability[rows] = shares[at, best]
