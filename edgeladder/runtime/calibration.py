"""Probabilities that hold: of what is said to be 80 % sure, 80 % is right.

The logits' scale is brought back by one number, a temperature (Guo et al., "On calibration of
modern neural networks", arXiv:1706.04599). It is fitted on held-out logits of the support set;
these are a little too good, because the head's own settings were chosen on them, the more so the
fewer pictures there are. What that is worth was measured on validation pictures (`OPTIMISM`), and
so was the scale where nothing can be held out (`SPREAD`): tools/bench/answers.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeladder.core.adapter_record import CalibrationRecord
from edgeladder.core.inference import Reliability, ReliabilityBin
from edgeladder.runtime.heads.blend import log_loss

Array = np.ndarray

BINS = 15  # as in arXiv:1706.04599
OPTIMISM = 2.5  # divided by the pictures of a class: by how much held-out logits are too good
# temperature in units of the support set's own spread, where nothing was held out: of a ladder's
# logits, and of the sum with a head's
SPREAD, SUM_SPREAD = 0.5, 0.42
TRUST = 40.0  # of the expected temperature, in pictures for each e-fold squared
_LEAST, _MOST = 1e-3, 1e6  # temperatures
_STEPS = 60  # of the golden section: far below a float's digits


def fit_temperature(logits: Array, labels: Array, expected: float) -> float:
    """The temperature that held-out logits call for.

    Args:
        logits: (n, C), each made without the row's own label.
        labels: (n,).
        expected: what to stay near where they say little: a head's logits are log-odds, so its
            weight.

    Returns:
        The T that minimises `n log-loss(logits / T) + trust (log T - log expected)^2`.
    """
    middle = float(np.log(np.clip(expected, _LEAST, _MOST)))

    def loss(place: float) -> float:
        return len(labels) * log_loss(logits / np.exp(place), labels) + TRUST * (
            (place - middle) ** 2
        )

    return float(np.exp(_minimum(loss, float(np.log(_LEAST)), float(np.log(_MOST)))))


def _minimum(loss: Callable[[float], float], low: float, high: float) -> float:
    """Where a function is least: a coarse grid, then the golden section around its best point."""
    grid = np.linspace(low, high, 64)
    best = int(np.argmin([loss(float(place)) for place in grid]))
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    share = (5**0.5 - 1) / 2
    left, right = high - share * (high - low), low + share * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - share * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + share * (high - low)
            at_right = loss(right)
    return (low + high) / 2


def from_held_out(logits: Array, labels: Array, expected: float) -> CalibrationRecord:
    """The temperature of held-out logits (n, C) of the support set, their optimism taken off."""
    shots = max(len(labels) / logits.shape[1], 1.0)
    found = fit_temperature(logits, labels, expected) * (1 + OPTIMISM / shots)
    return CalibrationRecord(temperature=found, pictures=len(labels))


def from_spread(logits: Array, share: float = SPREAD) -> CalibrationRecord:
    """A temperature of logits (n, C) of the pictures they were fitted on: these say their scale.

    They are of no use afterwards: of many classes even one copy is large.
    """
    logits -= logits.mean(axis=1, keepdims=True)
    spread = float(logits.std())
    return CalibrationRecord(temperature=max(share * spread, _LEAST))


class Calibration:
    """How true probabilities are, counted as pictures pass by.

    The expected calibration error is `sum over bins of n_b / n |accuracy_b - confidence_b|`, the
    confidence being the largest probability, in bins of equal width (arXiv:1706.04599, eq. 5).
    """

    def __init__(self, bins: int = BINS):
        self.counts = np.zeros(bins, np.int64)
        self.hits = np.zeros(bins, np.int64)
        self.confidence = np.zeros(bins)  # sums
        self.loss = 0.0  # sum

    def add(self, labels: Array, logits: Array) -> None:
        """Count one batch: labels (n,), logits (n, C) at their temperature."""
        if not len(labels):
            return
        wide = np.asarray(logits, np.float64)
        shifted = wide - wide.max(axis=1, keepdims=True)
        total = np.exp(shifted).sum(axis=1)
        confidence = 1 / total
        bins = len(self.counts)
        place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
        np.add.at(self.counts, place, 1)
        np.add.at(self.hits, place, wide.argmax(axis=1) == labels)
        np.add.at(self.confidence, place, confidence)
        self.loss += float((np.log(total) - shifted[np.arange(len(labels)), labels]).sum())

    def result(self) -> Reliability | None:
        """What was counted; None where nothing was."""
        count = int(self.counts.sum())
        if not count:
            return None
        error = float(np.abs(self.hits - self.confidence).sum() / count)
        edges = np.linspace(0, 1, len(self.counts) + 1)
        found = [
            ReliabilityBin(
                low=float(edges[k]),
                high=float(edges[k + 1]),
                count=int(n),
                confidence=float(self.confidence[k] / n) if n else None,
                accuracy=float(self.hits[k] / n) if n else None,
            )
            for k, n in enumerate(self.counts)
        ]
        return Reliability(
            expected_error=error, negative_log_likelihood=self.loss / count, bins=found
        )
