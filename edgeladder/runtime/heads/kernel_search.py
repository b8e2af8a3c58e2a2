"""The kernel's settings: tap weights, ridge and temperatures of the least held-out log-loss.

Coordinate descent over the tap weights; for every candidate all ridges are tried, each with the
folds left out in closed form (`leave_out`) and the temperatures fitted (`blend`). Candidates are
looked at in float32 first, at half the time; whatever comes near to being chosen is judged in
float64, so that float32's rounding decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgeladder.runtime.heads.blend import fit_weights
from edgeladder.runtime.heads.leave_out import Folds, inverse_factor, leave_out
from edgeladder.runtime.logits import softmax

Array = np.ndarray

_SCALES = (0.3, 1.0, 3.0)  # sum of the tap weights, the inverse bandwidth
_RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_GAINS = (0.0, 0.3, 1.0, 3.0)  # a tap's weight against the final embedding's
_PASSES = 2  # of coordinate descent over the taps
_MARGIN = 0.01  # a tap must earn its place: relative gain in leave-one-out log-loss
_START = (0.3, 6.0)  # weights of zero-shot and kernel, where nothing is known of them
_FEW = 200  # rows: float32 is not faster with so few
_FAR = 0.005  # relative: a loss so much above what is to be beaten has no other ridge that beats it
_NEAR, _NEAR_LOSS = 0.001, 1e-4  # float32's loss may be wrong by so much, relative and absolute


@dataclass(frozen=True)
class Choice:
    """What the support set decided, and at what held-out log-loss."""

    weights: tuple[float, ...]  # per tap
    ridge: float
    temperature: float  # of the kernel's term
    prior: float  # weight of the zero-shot logits
    loss: float
    base: float = 0.0  # weight of the zero-shot logits in what the residuals are taken from


Found = tuple[Choice, Array]  # what was chosen, and its held-out logits
Setting = tuple[float, float]  # ridge and base


@dataclass(frozen=True)
class _Trial:
    """One setting, tried."""

    setting: Setting
    loss: float
    weights: tuple[float, float]  # of zero-shot and of the kernel's term
    term: Array  # (n, C), left out


def gram_of(distances: list[Array], weights: list[float], kind: type) -> Array:
    """`exp(-sum_t w_t D_t)`, (n, n) of dtype `kind`, of distances (n, n) per tap."""
    total: Array = np.zeros(distances[0].shape, kind)
    scaled = np.empty(distances[0].shape, distances[0].dtype)
    for weight, distance in zip(weights, distances, strict=True):
        if weight > 0:
            np.multiply(distance, distance.dtype.type(weight), out=scaled)
            total -= scaled
    del scaled
    return np.asarray(np.exp(total, out=total))


@dataclass
class Search:
    """Coordinate descent over tap weights; ridge and temperatures by the closed form inside."""

    distances: list[Array]  # per tap (n, n), mean 1
    bases: list[float]  # weights of zero-shot to take residuals from
    onehot: Array
    labels: Array
    zero_shot: Array
    folds: Array  # (n,) in order

    def __post_init__(self) -> None:
        self._folds = Folds.of(self.folds)
        # by tap weights: losses in float32, and the least in float64
        self._looked_at: dict[tuple[float, ...], dict[Setting, float]] = {}
        self._judged: dict[tuple[float, ...], float] = {}
        self._starts: dict[Setting, tuple[float, float]] = {}  # where the last fit ended

    def run(self) -> Found:
        """Search, and judge what was found."""
        final = len(self.distances) - 1
        best: Found | None = None
        for scale in _SCALES:
            for shape in ([0.0] * final + [1.0], [1.0 / (final + 1)] * (final + 1)):
                best = self._better(best, [scale * w for w in shape], 0.0)
                if not final:
                    break
        assert best is not None  # _SCALES is not empty
        self.bases = [best[0].base]
        for _ in range(_PASSES if final else 1):
            before = best[0].loss
            for tap in range(final):
                size = sum(best[0].weights)
                for gain in _GAINS:
                    shape = list(best[0].weights)
                    shape[tap] = gain * max(shape[final], 1e-3)
                    factor = size / sum(shape)  # same bandwidth, another mixture
                    best = self._better(best, [w * factor for w in shape], _MARGIN)
            for factor in (0.5, 2.0):
                best = self._better(best, [w * factor for w in best[0].weights], 0.0)
            if best[0].loss >= before:
                break
        return best

    def _better(self, best: Found | None, weights: list[float], margin: float) -> Found:
        """The candidate where its loss is below the best one's by the margin, else the best."""
        limit = np.inf if best is None else best[0].loss * (1 - margin)
        key = tuple(round(weight, 9) for weight in weights)
        if best is not None and self._judged.get(key, -1.0) >= limit:
            return best
        settings = [(ridge, base) for ridge in _RIDGES for base in self.bases]
        if len(self.labels) > _FEW:
            losses = self._looked_at.setdefault(key, {})
            self._look(weights, losses, best[0].ridge if best else None, limit)
            least = min(losses.values())
            if best is not None and least > _near(limit):
                return best
            settings = [setting for setting in settings if losses[setting] <= _near(least)]
        gram = gram_of(self.distances, weights, np.float64)
        found = min(self._trials(gram, settings), key=lambda trial: trial.loss)
        del gram
        self._judged[key] = found.loss
        if best is not None and found.loss >= limit:
            return best
        prior, temperature = found.weights
        (ridge, base), held_out = found.setting, prior * self.zero_shot + temperature * found.term
        return Choice(tuple(weights), ridge, temperature, prior, found.loss, base), held_out

    def _look(
        self, weights: list[float], losses: dict[Setting, float], ridge: float | None, limit: float
    ) -> None:
        """Losses in float32: from a ridge on while they fall; all where they come near the limit.

        Args:
            weights: per tap.
            losses: what is known; what is found is added.
            ridge: where to begin; None: look at all.
            limit: the loss to beat.
        """
        gram = gram_of(self.distances, weights, np.float32)

        def least(place: int) -> float:
            if not 0 <= place < len(_RIDGES):
                return np.inf
            asked = [(_RIDGES[place], base) for base in self.bases]
            if asked[0] not in losses:
                tried = self._trials(gram, asked)
                losses.update({trial.setting: trial.loss for trial in tried})
            return min(losses[setting] for setting in asked)

        if ridge is not None:
            start = _RIDGES.index(ridge)
            reached = [least(start)]
            for way in (-1, 1):
                place = start + way
                while (here := least(place)) < reached[-1]:
                    reached.append(here)
                    place += way
                if len(reached) > 1:
                    break
            if reached[-1] > limit * (1 + _FAR) + _NEAR_LOSS:
                return
        for place in range(len(_RIDGES)):
            least(place)

    def _trials(self, gram: Array, settings: list[Setting]) -> Iterator[_Trial]:
        """Ridges and bases tried for a Gram matrix; one factorisation for each ridge."""
        for ridge in dict.fromkeys(ridge for ridge, _ in settings):
            factor = inverse_factor(gram, ridge)
            for base in (base for other, base in settings if other == ridge):
                targets = self.onehot - softmax(base * self.zero_shot)
                term = leave_out(factor, targets.astype(gram.dtype), self._folds)
                start = self._starts.get((ridge, base), _START)
                (prior, temperature), loss = fit_weights(
                    [self.zero_shot, term], self.labels, start=start
                )
                fitted = float(prior), float(temperature)
                self._starts[ridge, base] = fitted
                yield _Trial((ridge, base), loss, fitted, term)


def _near(loss: float) -> float:
    """The greatest float32 loss that may stand for a loss."""
    return loss * (1 + _NEAR) + _NEAR_LOSS
