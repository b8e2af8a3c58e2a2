"""How much each source of evidence counts: a sum of logits whose weights the support set decides.

`logits = sum_j c_j terms_j` with `c >= 0`. The log-loss is convex in `c`, so a few Newton steps
find the best weights exactly; what matters is that every term was made **without** the picture it
is judged on (leave-one-out or k-fold).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeladder.runtime.logits import softmax

Array = np.ndarray

_NEWTON_STEPS = 12
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
    stack = np.stack([np.asarray(t, np.float64) for t in terms])  # (J, n, C)
    count = stack.shape[1]
    rows = np.arange(count)
    # units: each term at unit spread, so that one ridge suits all
    spread = np.maximum(stack.std(axis=(1, 2)), 1e-12)
    stack = stack / spread[:, None, None]
    weights = np.ones(len(stack)) if start is None else np.asarray(start, np.float64)
    weights = weights * spread

    def loss_of(values: Array) -> float:
        total = np.tensordot(values, stack, 1)
        return log_loss(total, labels) + _RIDGE * float(values @ values)

    loss = loss_of(weights)
    for _ in range(_NEWTON_STEPS):
        chance = softmax(np.tensordot(weights, stack, 1))  # (n, C)
        mean = (stack * chance).sum(axis=2)  # (J, n) expected term
        gradient = (mean - stack[:, rows, labels]).mean(axis=1) + 2 * _RIDGE * weights
        second = (stack * chance).reshape(len(stack), -1) @ stack.reshape(len(stack), -1).T
        hessian = (second - mean @ mean.T) / count + 2 * _RIDGE * np.eye(len(stack))
        free = (weights > 0) | (gradient < 0)
        if not free.any():
            break
        move = np.zeros_like(weights)
        move[free] = -np.linalg.solve(
            hessian[np.ix_(free, free)] + 1e-10 * np.eye(int(free.sum())), gradient[free]
        )
        step = 1.0
        while step > 1e-4:
            trial = np.maximum(weights + step * move, 0.0)
            reached = loss_of(trial)
            if reached < loss:
                break
            step /= 2
        else:
            break
        finished = loss - reached < 1e-9
        weights, loss = trial, reached
        if finished:
            break
    total = np.tensordot(weights, stack, 1)
    return weights / spread, log_loss(total, labels)


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
