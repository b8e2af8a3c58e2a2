"""Pictures worth a look: named most wrongly with most certainty, and those that training mended.

A fixed number of them whatever the number of pictures; positions, not pictures, so that an
evaluation from the cache knows them too. Nothing heavier than numpy, as in `scoring`.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np

MOST = 8  # of each kind: what a page shows


class Notable:
    """Collects the pictures of an evaluation that pass by."""

    def __init__(self, classes: list[str]):
        self._classes = classes
        self._seen = 0
        self._wrong: list[tuple[float, int, dict[str, Any]]] = []  # the least certain on top
        self._improved: list[tuple[float, int, dict[str, Any]]] = []

    def add(self, labels: np.ndarray, tuned: np.ndarray, zero_shot: np.ndarray) -> None:
        """Take one batch: labels (n,), logits (n, C) twice, in the evaluation's order."""
        rows = np.arange(len(labels))
        shares, before = _softmax(tuned), _softmax(zero_shot)
        named, first = tuned.argmax(axis=1), zero_shot.argmax(axis=1)
        for row in rows[named != labels]:
            self._keep(self._wrong, shares[row, named[row]], row, labels, named, first, shares)
        for row in rows[(named == labels) & (first != labels)]:
            gain = shares[row, labels[row]] - before[row, labels[row]]
            self._keep(self._improved, gain, row, labels, named, first, shares)
        self._seen += len(labels)

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """Both kinds, `wrong` and `improved`, the most notable first.

        Each has its `position` among the judged pictures, the `label` it has, the names it got
        (`named`, and `zero_shot` before) and the `probability` of the name.
        """
        return {
            name: [item for _, _, item in sorted(kept, key=lambda entry: (-entry[0], entry[1]))]
            for name, kept in (("wrong", self._wrong), ("improved", self._improved))
        }

    def _keep(
        self,
        kept: list[tuple[float, int, dict[str, Any]]],
        score: float,
        row: int,
        labels: np.ndarray,
        named: np.ndarray,
        first: np.ndarray,
        shares: np.ndarray,
    ) -> None:
        position = self._seen + int(row)
        if len(kept) == MOST and float(score) <= kept[0][0]:
            return
        item = {
            "position": position,
            "label": self._classes[labels[row]],
            "named": self._classes[named[row]],
            "zero_shot": self._classes[first[row]],
            "probability": round(float(shares[row, named[row]]), 4),
        }
        heapq.heappush(kept, (float(score), position, item))
        if len(kept) > MOST:
            heapq.heappop(kept)


def _softmax(logits: np.ndarray) -> np.ndarray:
    """(n, C) probabilities of (n, C) logits."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
