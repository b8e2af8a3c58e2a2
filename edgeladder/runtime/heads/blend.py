"""How much each source of evidence counts: a sum of logits whose weights the support set decides.

`logits = sum_j c_j terms_j` with `c >= 0`. The log-loss is convex in `c`, so a few Newton steps
find the best weights exactly; what matters is that every term was made **without** the picture it
is judged on (leave-one-out or k-fold).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Array = np.ndarray

_NEWTON_STEPS = 12
_SETTLED = 1e-9  # of the loss: a step that wins less is the last
NOISE_NATS = 2.0  # of the labels' log-likelihood, that a chance fit may well explain
_RIDGE = 1e-4  # keeps the weights finite where the terms separate the support set perfectly


def log_loss(logits: Array, labels: Array) -> float:
    """Mean negative log-probability of the labels; logits (n, C), labels (n,)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1))
    return float(np.mean(total - shifted[np.arange(len(labels)), labels]))


def fit_weights(
    terms: Sequence[Array], labels: Array, start: Sequence[float] | None = None
) -> tuple[Array, float]:
    """The non-negative weights of `terms` that minimise the log-loss of their sum.

    Args:
        terms: J arrays (n, C) of logits, each made without the row's own label.
        labels: (n,) class indices.
        start: J starting weights; None: ones.

    Returns:
        Weights (J,) and the log-loss they reach. Newton's method with the active set of weights
        at zero, damped by halving, so the loss never exceeds the start's.
    """
    # classes before rows: sums over the classes are then sums of whole rows
    stack = np.stack([np.asarray(t, np.float64).T for t in terms])  # (J, C, n)
    # units: each term at unit spread, so that one ridge suits all
    spread = np.maximum(stack.std(axis=(1, 2)), 1e-12)
    stack /= spread[:, None, None]
    weights = np.ones(len(stack)) if start is None else np.asarray(start, np.float64)
    weights = weights * spread
    loss, chance = _loss_of(stack, labels, weights)
    for _ in range(_NEWTON_STEPS):
        move, gain = _newton_step(stack, labels, weights, chance)
        step = 1.0
        while step > 1e-4:
            trial = np.maximum(weights + step * move, 0.0)
            reached, chances = _loss_of(stack, labels, trial)
            if reached < loss:
                break
            if gain < _SETTLED:  # there is nothing to win: what is left is rounding
                step = 0.0
            step /= 2
        else:
            break
        finished = loss - reached < _SETTLED
        weights, loss, chance = trial, reached, chances
        if finished:
            break
    return weights / spread, loss - _RIDGE * float(weights @ weights)


def _loss_of(stack: Array, labels: Array, weights: Array) -> tuple[float, Array]:
    """Log-loss of the weighted sum, its ridge added, and the classes' probabilities (C, n)."""
    total = np.tensordot(weights, stack, 1)
    total -= total.max(axis=0)
    chosen = total[labels, np.arange(len(labels))]
    chance = np.exp(total, out=total)
    sums = chance.sum(axis=0)
    loss = float(np.mean(np.log(sums) - chosen)) + _RIDGE * float(weights @ weights)
    chance /= sums
    return loss, chance


def _newton_step(stack: Array, labels: Array, weights: Array, chance: Array) -> tuple[Array, float]:
    """Newton's step (J,) of the weights that are free to move, and what it would win."""
    count = stack.shape[2]
    flat = stack.reshape(len(stack), -1)
    weighted = stack * chance
    mean = weighted.sum(axis=1)  # (J, n) expected term
    own = stack[:, labels, np.arange(count)]
    gradient = (mean - own).mean(axis=1) + 2 * _RIDGE * weights
    second = weighted.reshape(len(stack), -1) @ flat.T
    hessian = (second - mean @ mean.T) / count + 2 * _RIDGE * np.eye(len(stack))
    free = (weights > 0) | (gradient < 0)
    move = np.zeros_like(weights)
    if free.any():
        move[free] = -np.linalg.solve(
            hessian[np.ix_(free, free)] + 1e-10 * np.eye(int(free.sum())), gradient[free]
        )
    return move, -0.5 * float(gradient @ move)


def explained_nats(logits: Array, labels: Array) -> float:
    """What logits that never saw the labels explain of them, at the temperature that suits best.

    With p_t(label) the probability of a label at temperature t: max over t of
    sum(log C + log p_t(label)), in nats. A temperature chosen on noise alone explains half a nat
    on average.

    Args:
        logits: (n, C), such as zero-shot's.
        labels: (n,).
    """
    (trust,), _ = fit_weights([logits], labels)
    count, classes = logits.shape
    return float(count * (np.log(classes) - log_loss(trust * logits, labels)))


def choose_head_weight(ladder: Array, head: Array, labels: Array) -> float:
    """The weight of a head's logits beside the ladder's.

    Args:
        ladder: (n, C) held-out ladder logits of the support pictures (k-fold).
        head: (n, C) held-out head logits of the same pictures (leave-one-out or k-fold).
        labels: (n,).

    Returns:
        At least 0: the ratio of the two best weights: the sum's own temperature does not change
        the class chosen. A ladder that is worth nothing would make it infinite: at most 100.
    """
    (first, second), _ = fit_weights([ladder, head], labels)
    return float(min(second / max(first, 1e-9), 100.0))
