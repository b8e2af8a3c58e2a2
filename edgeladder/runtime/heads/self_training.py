"""Pseudo-labels in more than one pass: what the first one found teaches the head of the next.

A pass keeps the head's taps, bandwidth and ridge, which few labelled pictures chose. A head on
labels and pseudo-labels chooses them anew and looks at all pictures again (self-training; Scudder,
IEEE Transactions on Information Theory 11:363, 1965): a point at two and four pictures a class,
where it is told that classes are even. Told nothing it is not done: where classes are skewed, each
pass adds to what is wrong (docs/notes/few-shot.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from edgeladder.runtime.heads.closed_form import Blend, fit_head
from edgeladder.runtime.heads.fit_head import head_sample
from edgeladder.runtime.heads.head_inputs import HeadInputs
from edgeladder.runtime.heads.pseudo_labels import PseudoLabels, find_pseudo_labels

Array = np.ndarray


@dataclass(frozen=True)
class SelfTraining:
    """How labels are given.

    Attributes:
        passes: over all unlabelled pictures; before each but the first a head is fitted on labels
            and pseudo-labels.
        even: take classes to be equally common among them.
        most: pictures, labelled or not, in memory at a time.
        fitted_on: pictures, at most, that the head of a further pass is fitted on.
        surest: share of the pictures taken for a class that may become labels.
    """

    passes: int = 1
    even: bool = False
    most: int = 600
    fitted_on: int = 600
    surest: float = 0.6


def self_train(
    head: Blend,
    support: HeadInputs,
    pool: Callable[[Array], HeadInputs],
    count: int,
    how: SelfTraining,
    told: Callable[[int], None] = lambda done: None,
) -> PseudoLabels:
    """Give labels to unlabelled pictures, in one or more passes over all of them.

    Args:
        head: fitted on the support set: of the first pass.
        support: the labelled pictures; every class must occur.
        pool: what a head reads of the unlabelled pictures at some of the places below `count`.
        count: of unlabelled pictures.
        how: passes and sizes.
        told: called with the number of pictures done, in all passes.
    """
    found: PseudoLabels | None = None
    for number in range(how.passes):
        if found is not None:
            if not (found.labels >= 0).any():  # nothing to learn from
                return found
            head = _taught(support, pool, found.labels, min(how.fitted_on, how.most))
        found = find_pseudo_labels(
            head, support, pool, count, even=how.even, most=how.most, surest=how.surest,
            told=partial(_told_after, told, number * count),
        )  # fmt: skip
    assert found is not None
    return found


def _told_after(told: Callable[[int], None], before: int, done: int) -> None:
    told(before + done)


def _taught(
    support: HeadInputs, pool: Callable[[Array], HeadInputs], labels: Array, most: int
) -> Blend:
    """A head on at most `most` of the labelled pictures and of those with `labels` so far."""
    places, known = np.flatnonzero(labels >= 0), len(support.labels)
    chosen = head_sample(np.concatenate([support.labels, labels[places]]), known, most, 0)
    others = places[chosen[chosen >= known] - known]
    # nothing but `both` is there while a head is fitted on it
    both = support.rows(chosen[chosen < known]).followed_by(
        replace(pool(others), labels=labels[others])
    )
    head = fit_head("blend", both.features, both.labels, both.zero_shot, projected=both.projected)
    assert isinstance(head, Blend)
    return head
