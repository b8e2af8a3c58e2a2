"""Labels for unlabelled pictures (pseudo-labels), from the head that the labelled ones make.

1. Soft labels, a few hundred pictures at a time: the head's probabilities, scaled in turns by class
   and by picture to the classes' proportions (Sinkhorn and Knopp, "Concerning nonnegative
   matrices", 1967). Kernel and discriminant are fitted on labelled and unlabelled pictures with
   them, an unlabelled one counting half by the square of its certainty; four rounds.
2. The surest 60 % of each class become labels (Lee, "Pseudo-label", ICML workshops 2013); where
   proportions are estimated, those alone that the labelled pictures' head takes for the same class
   (with one or two pictures a class it is not asked): common classes would fill rare ones else.

Who then fits a head on all of them has taps, bandwidth and ridge chosen by many more pictures than
were labelled: two points at four pictures a class (docs/notes/few-shot.md).

Proportions are even, or the most likely ones under a Dirichlet prior around even ones, found once
from the labelled pictures' head: found anew in every round they run away. What is farther from the
labelled pictures than nearly all of those are from each other is of no class, and gets no label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edgeladder.runtime.heads.closed_form import Blend, Gda, beside
from edgeladder.runtime.heads.discriminant import rule_of_moments
from edgeladder.runtime.heads.head_inputs import HeadInputs
from edgeladder.runtime.heads.kernel import Kernel, balanced, centred, gram
from edgeladder.runtime.logits import softmax

Array = np.ndarray

_ROUNDS = 4
_WEIGHT = 0.5  # of an unlabelled picture whose class is certain, against a labelled one's
_LEAST_WEIGHT = 1e-3  # of one that is left out: a ridge of 1 / 0 would be none
_PRIOR = 4.0  # even pictures added to every estimated one: proportions move a fifth of the way
_ESTIMATED_FROM = 2048  # pictures, taken evenly, that the proportions are found from
_STRANGE = 0.01  # of the labelled pictures are as far from the others as a picture of no class
_MOST_STRANGE = 0.9  # of all pictures may be left out as strange
_NEIGHBOURS = 3
_JUDGE = 3  # labelled pictures of every class that make a head whose word is asked for
_WINDOW = 64  # pictures judged at a time
_KEPT = 1e-7  # of the largest eigenvalue: below it is rounding


@dataclass(frozen=True)
class PseudoLabels:
    """What was found of the unlabelled pictures."""

    labels: Array  # (u,) int32; -1: none
    proportions: Array  # (C,) of the classes among them, even or estimated
    strange: int  # pictures that are like none of the labelled ones


def find_pseudo_labels(
    head: Blend,
    support: HeadInputs,
    pool: Callable[[Array], HeadInputs],
    count: int,
    *,
    even: bool = False,
    most: int = 600,
    surest: float = 0.6,
    told: Callable[[int], None] = lambda done: None,
) -> PseudoLabels:
    """Give labels to those of `count` unlabelled pictures that are sure enough.

    Args:
        head: fitted on the support set.
        support: the labelled pictures; every class must occur.
        pool: what a head reads of the unlabelled pictures at some of the places below `count`;
            their labels are not looked at.
        even: take classes to be equally common among them; else their proportions are estimated.
        most: pictures, labelled or not, in memory at a time: what is held grows with its square.
        surest: share of the pictures taken for a class that may become labels.
        told: called with the number of pictures done.
    """
    classes = support.zero_shot.shape[1]
    fewest = int(np.bincount(support.labels, minlength=classes).min())
    proportions = np.full(classes, 1 / classes)
    if not even:
        chances = [softmax(_logits(head, pool(rows))) for rows in _windows(count)]
        proportions = likely_proportions(np.concatenate(chances), _PRIOR)
    room = max(most // 2, classes)
    if len(support.labels) > room:
        support = support.rows(balanced(support.labels, room, 0))
    taken, sureness = np.full(count, -1, np.int32), np.zeros(count)
    strange, done = 0, 0
    for rows in _portions(count, most - len(support.labels)):
        given = pool(rows)
        portion = _Portion(head, support, given)
        shares = portion.shares(proportions)
        found = shares.argmax(axis=1).astype(np.int32)
        sureness[rows] = shares.max(axis=1)
        counted = portion.familiar.copy()
        strange += int((~counted).sum())
        if fewest >= _JUDGE and not even:
            counted &= _logits(head, given).argmax(axis=1) == found
        # not yet told apart: the surest of a class are counted among all that are taken for it
        taken[rows] = np.where(counted, found, -2 - found)
        done += len(rows)
        told(done)
    return PseudoLabels(_surest(taken, sureness, surest), proportions, strange)


def _surest(taken: Array, sureness: Array, share: float) -> Array:
    """Labels (u,) of the surest of each class; -1 elsewhere.

    Args:
        taken: the class of each, or -2 less the class where it may not be a label.
        sureness: of it, the larger the surer.
        share: of the pictures taken for a class.
    """
    classes, labels = np.where(taken < 0, -2 - taken, taken), np.full(len(taken), -1, np.int32)
    for label in np.unique(classes):
        rows = np.flatnonzero(classes == label)
        order = rows[np.argsort(-sureness[rows], kind="stable")]
        chosen = order[: round(share * len(rows))]
        chosen = chosen[taken[chosen] >= 0]
        labels[chosen] = label
    return labels


def scaled(logits: Array, proportions: Array, rounds: int = 60) -> Array:
    """Probabilities (n, C) whose columns sum to `n * proportions` and whose rows to one."""
    shares = softmax(logits)
    for _ in range(rounds):
        shares *= proportions * len(shares) / np.maximum(shares.sum(axis=0), 1e-9)
        shares /= shares.sum(axis=1, keepdims=True)
    return shares


def likely_proportions(chances: Array, prior: float, rounds: int = 50) -> Array:
    """Classes' proportions (C,) by expectation maximisation, where even ones are likely before.

    Args:
        chances: (n, C) probabilities of a classifier that takes classes to be equally common.
        prior: even pictures added, in units of the pictures there are.
        rounds: of the maximisation.
    """
    count, classes = chances.shape
    found = np.full(classes, 1 / classes)
    for _ in range(rounds):
        shares = chances * found
        shares /= shares.sum(axis=1, keepdims=True)
        found = (shares.sum(axis=0) + prior * count / classes) / (count * (1 + prior))
    return np.asarray(found)


class _Portion:
    """The support set and some unlabelled pictures, in coordinates that make a round cheap."""

    def __init__(self, head: Blend, support: HeadInputs, pool: HeadInputs):
        kernel, rule = head.heads
        assert isinstance(kernel, Kernel) and isinstance(rule, Gda)
        self._kernel, self._rule = kernel, rule
        self._labels, self._plain = support.labels, pool.zero_shot
        self._first = _logits(head, pool)
        both = support.followed_by(pool)
        rows = beside(both.features, rule.reads)
        products = rows @ rows.T
        del rows  # their products say how far apart they are: all that counts
        self.familiar = _familiar(products[:, : len(self._labels)].copy())
        values, vectors = np.linalg.eigh(products)
        kept = values > _KEPT * values[-1]
        self._rows = vectors[:, kept] * np.sqrt(values[kept])  # as far apart as they were
        del products, vectors
        units = (
            (rate, centred(both.features[tap].astype(np.float32), kernel.centres[tap]))
            for tap, rate in kernel.rates.items()
        )
        self._gram = gram((len(self._rows),) * 2, ((rate, unit, unit) for rate, unit in units))
        self._base = softmax(kernel.choice.base * both.zero_shot)

    def shares(self, proportions: Array) -> Array:
        """Soft labels (u, C) of the unlabelled pictures after all rounds."""
        shares, classes = scaled(self._first, proportions), len(proportions)
        for _ in range(_ROUNDS):
            spread = -(shares * np.log(shares + 1e-12)).sum(axis=1) / np.log(max(classes, 2))
            weights = np.maximum(_WEIGHT * (1 - spread) ** 2 * self.familiar, _LEAST_WEIGHT)
            shares = scaled(self._fitted(shares, weights), proportions)
        return shares

    def _fitted(self, shares: Array, weights: Array) -> Array:
        """Logits (u, C) by both parts, fitted on all pictures with soft labels.

        A row of weight w has a ridge of `lambda / w` in the kernel, and counts w times in the
        discriminant's moments.
        """
        known, classes = len(self._labels), shares.shape[1]
        targets = np.concatenate([np.eye(classes)[self._labels], shares])
        counts = np.concatenate([np.ones(known), weights])
        members = targets * counts[:, None]
        matrix, bias = rule_of_moments(
            self._rows.T @ (self._rows * counts[:, None]),
            members.T @ self._rows,
            np.maximum(members.sum(axis=0), 1e-9),
            0.0,
        )
        rule, choice = self._rule, self._kernel.choice
        first = rule.prior * self._plain + rule.weight * (self._rows[known:] @ matrix + bias)
        ridged = np.array(self._gram, np.float64)
        ridged[np.diag_indices_from(ridged)] += choice.ridge / counts
        alpha = np.linalg.solve(ridged, targets - self._base)
        second = choice.prior * self._plain + choice.temperature * (self._gram[known:] @ alpha)
        return np.asarray((first + second) / 2)


def _familiar(cosines: Array) -> Array:
    """Which unlabelled pictures (u,) are as near to labelled ones as those are to each other.

    Args:
        cosines: (n + u, n) of all pictures, labelled first, with the labelled ones; written to.
    """
    known = cosines.shape[1]
    cosines[np.arange(known), np.arange(known)] = -1.0  # itself
    count = min(_NEIGHBOURS, max(1, known - 1))
    nearest = np.sort(cosines, axis=1)[:, -count:].mean(axis=1)
    edge = min(np.quantile(nearest[:known], _STRANGE), np.quantile(nearest, _MOST_STRANGE))
    return np.asarray(nearest[known:] >= edge)


def _logits(head: Blend, given: HeadInputs) -> Array:
    """The head's logits (n, C), a window at a time: it widens what it reads."""
    windows = (slice(start, start + _WINDOW) for start in range(0, len(given.labels), _WINDOW))
    return np.concatenate(
        [head.logits([tap[w] for tap in given.features], given.zero_shot[w]) for w in windows]
    )


def _windows(count: int, size: int = 4 * _WINDOW) -> Iterator[Array]:
    """Places of the pictures that proportions are found from, evenly over all, in windows."""
    chosen = np.arange(count)
    if count > _ESTIMATED_FROM:
        chosen = np.arange(_ESTIMATED_FROM) * count // _ESTIMATED_FROM
    for start in range(0, len(chosen), size):
        yield chosen[start : start + size]


def _portions(count: int, size: int) -> list[Array]:
    """All places below `count` in portions of at most `size`, each a sample of the whole."""
    order = np.random.default_rng(0).permutation(count)
    return [np.sort(part) for part in np.array_split(order, max(1, -(-count // size)))]
