"""Kernel ridge on the support set, its taps, bandwidth and ridge chosen by leave-one-out.

One kernel of all taps: `K = exp(-sum_t w_t D_t)`, where `D_t` is tap t's squared distance divided
by its mean over the support set. The weights `w` (the bandwidth is their sum), the ridge `lambda`
and the trust in the zero-shot logits are chosen on the support set alone, by the closed form

    loo residual = R - (A R) / diag(A),  A = (K + lambda I)^-1,  R = Y - base

The base is what zero-shot predicts at the temperature that the support set calls for, or uniform:
residuals of an overconfident zero-shot that is wrong here would have to be unlearnt.

so no picture is judged by a fit that saw it, and no test picture is looked at. ProKeR
(arXiv:2501.11175) is the special case of one tap, the final embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeladder.runtime.heads.blend import fit_weights
from edgeladder.runtime.heads.kernel_search import Choice, Search
from edgeladder.runtime.logits import softmax

Array = np.ndarray

CENTRING = 0.7  # share of the support mean that is taken away from every tap
SEARCH_PICTURES = 600  # the search costs n^3 per candidate: beyond this a class-balanced sample
_FIXED = (1.0, 0.3, 8.0)  # scale, ridge and temperature where leaving out says too little
_JUDGES = 100  # pictures: fewer, with one left of a class at a time, cannot choose tap weights


def squared_distances(left: Array, right: Array) -> Array:
    """Squared Euclidean distances between rows: (n, D), (m, D) -> (n, m), never negative."""
    norms = (left**2).sum(1)[:, None] + (right**2).sum(1)[None, :]
    return np.asarray(np.maximum(norms - 2.0 * (left @ right.T), 0.0))


def normalise(rows: Array) -> Array:
    """Rows at unit length, float64; rows of zeros stay."""
    rows = np.asarray(rows, np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def shot_folds(labels: Array, pictures: Array | None = None) -> Array:
    """Folds that leave out one picture of every class at a time.

    Leaving out one picture alone unbalances the classes against it, which at few shots makes
    every kernel look worse than it is. Views of one picture stay in one fold.

    Args:
        labels: (n,) class of every row.
        pictures: (n,) picture of every row, where there are several views of one; None: one each.

    Returns:
        (n,) fold numbers 0 .. shots - 1.
    """
    owners = np.arange(len(labels)) if pictures is None else np.asarray(pictures)
    folds = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        folds[rows] = np.unique(owners[rows], return_inverse=True)[1]
    return folds


@dataclass
class Kernel:
    """A fitted multi-tap kernel: `logits = prior * zero_shot + temperature * k(x, S) alpha`."""

    choice: Choice
    centres: list[Array]  # per tap (W,)
    support: list[Array]  # per tap (n, W), centred and at unit length
    scales: list[float]  # per tap: mean squared distance over the support set
    alpha: Array  # (n, C)
    held_out: Array | None = field(default=None, repr=False)  # (n, C) logits left out by fold

    @property
    def rates(self) -> dict[int, float]:
        """What the squared distance of each tap that counts is multiplied by in the exponent."""
        return _rates(self.choice, self.scales)

    def logits(self, features: Sequence[Array], zero_shot: Array) -> Array:
        """Class logits (m, C) of pictures, given features per tap and zero-shot logits.

        A kernel on fewer taps than `features` holds reads the last ones.
        """
        features = features[-len(self.centres) :]
        pairs = (
            (rate, centred(features[tap], self.centres[tap]), self.support[tap])
            for tap, rate in self.rates.items()
        )
        term = gram((len(zero_shot), len(self.alpha)), pairs) @ self.alpha
        return np.asarray(self.choice.prior * zero_shot + self.choice.temperature * term)


def gram(shape: tuple[int, int], pairs: Iterable[tuple[float, Array, Array]]) -> Array:
    """`exp(-sum_t rate_t |left - right|^2)`, float64 of `shape` (n, m).

    Args:
        shape: rows on the left and on the right.
        pairs: a tap's rate, left rows (n, W) and right rows (m, W); taken one at a time, since
            distances are the most that is held here.
    """
    total = np.zeros(shape)
    for rate, left, right in pairs:
        total -= rate * squared_distances(left, right)
    return np.asarray(np.exp(total, out=total))


def _rates(choice: Choice, scales: Sequence[float]) -> dict[int, float]:
    weighed = enumerate(zip(choice.weights, scales, strict=True))
    return {tap: weight / scale for tap, (weight, scale) in weighed if weight > 0}


def centred(rows: Array, centre: Array) -> Array:
    """Unit rows minus `centre`, at unit length again; float32, for all taps' rows are kept."""
    return normalise(normalise(rows) - centre).astype(np.float32)


def fit_kernel(
    features: Sequence[Array],
    labels: Array,
    zero_shot: Array,
    *,
    folds: Array | None = None,
    seed: int = 0,
) -> Kernel:
    """Choose by leaving out on the support set, then fit all of it.

    Args:
        features: per tap (n, W), the final embedding **last**.
        labels: (n,) class indices.
        zero_shot: (n, C) zero-shot logits; C is the number of classes.
        folds: (n,) rows left out together, e.g. `shot_folds`; None: one by one.
        seed: of the sample searched where there are more than SEARCH_PICTURES rows.

    Returns:
        The head. One embedding alone is fitted by leaving out wherever every class has two folds,
        several taps where it has three or there are many pictures to judge by; else taps count
        alike and settings are fixed.
    """
    labels = np.asarray(labels)
    zero_shot = np.asarray(zero_shot, np.float64)
    centres = [CENTRING * normalise(tap).mean(axis=0) for tap in features]
    rows = [centred(tap, centre) for tap, centre in zip(features, centres, strict=True)]
    onehot = np.eye(zero_shot.shape[1])[labels]
    trust = float(fit_weights([zero_shot], labels)[0][0])  # zero-shot saw no label: none left out
    owners = np.arange(len(labels)) if folds is None else np.asarray(folds)
    picked = balanced(labels, SEARCH_PICTURES, seed)
    picked = picked[np.argsort(owners[picked], kind="stable")]  # leaving out goes fold by fold
    distances = [squared_distances(tap[picked], tap[picked]) for tap in rows]
    scales = [_mean_distance(distance) for distance in distances]
    held_out = None
    if _can_leave_out(labels, owners, len(rows)):
        for distance, scale in zip(distances, scales, strict=True):
            distance /= scale  # in place: a second copy of all of them is what would count here
        search = Search(
            distances,
            [0.0, trust],
            onehot[picked],
            labels[picked],
            zero_shot[picked],
            owners[picked],
        )
        choice, found = search.run()
        del search
        if len(picked) == len(labels):
            held_out = np.empty_like(found)
            held_out[picked] = found
    else:
        scale, ridge, temperature = _FIXED
        weights = (scale / len(rows),) * len(rows)
        choice = Choice(weights, ridge, temperature, trust, float("nan"))
    del distances
    alpha = _solve(rows, scales, choice, onehot - softmax(choice.base * zero_shot))
    return Kernel(choice, centres, rows, scales, alpha, held_out)


def _can_leave_out(labels: Array, owners: Array, taps: int) -> bool:
    """Whether leaving out folds, (n,), says enough to choose the settings of so many taps by."""
    needed = 3 if taps > 1 and len(labels) < _JUDGES else 2
    return min(len(np.unique(owners[labels == label])) for label in np.unique(labels)) >= needed


def _solve(rows: list[Array], scales: list[float], choice: Choice, targets: Array) -> Array:
    """The ridge's solution alpha (n, C) for targets (n, C), given rows (n, W) per tap."""
    pairs = ((rate, rows[tap], rows[tap]) for tap, rate in _rates(choice, scales).items())
    kernel = gram((len(targets), len(targets)), pairs)
    kernel[np.diag_indices_from(kernel)] += choice.ridge
    return np.asarray(np.linalg.solve(kernel, targets))


def fit_proker(
    embedding: Array,
    labels: Array,
    zero_shot: Array,
    *,
    folds: Array | None = None,
    seed: int = 0,
) -> Kernel:
    """ProKeR, arXiv:2501.11175: one RBF kernel on the final embedding, anchored at zero-shot."""
    return fit_kernel([embedding], labels, zero_shot, folds=folds, seed=seed)


def _mean_distance(distance: Array) -> float:
    count = len(distance)
    return max(float(distance.sum()) / max(count * (count - 1), 1), 1e-12)


def balanced(labels: Array, most: int, seed: int) -> Array:
    """At most `most` row indices, classes in turn, in the rows' order."""
    if len(labels) <= most:
        return np.arange(len(labels))
    generator = np.random.default_rng(seed)
    shuffled = generator.permutation(len(labels))
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = shuffled[labels[shuffled] == label]
        rank[rows] = np.arange(len(rows))
    order = shuffled[np.argsort(rank[shuffled], kind="stable")]
    return np.asarray(np.sort(order[:most]))
