"""Closed-form heads on cached features: GDA, ProKeR and the multi-tap kernel.

A head is fitted in well under a second, without an optimiser. Alone it classifies; beside a
ladder it is a term: `logits = ladder + eta * head`. Its features are the taps (flattened) and,
last, CLIP's final embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgeladder.device.infer.blend import fit_weights
from edgeladder.device.infer.kernel import (
    Choice,
    Kernel,
    fit_kernel,
    fit_proker,
    normalise,
    shot_folds,
)
from edgeladder.errors import IntegrityError

Array = np.ndarray
Kind = Literal["gda", "proker", "kernel"]

KINDS: tuple[Kind, ...] = ("gda", "proker", "kernel")
_BLIND_WEIGHT = 1.0  # of GDA at one picture a class, in units of the zero-shot logits' spread


@dataclass
class Gda:
    """Gaussian discriminant analysis beside zero-shot, arXiv:2402.04087.

    `logits = prior * zero_shot + weight * (f W + b)`, W = Sigma^-1 mu_k,
    b = -1/2 mu_k Sigma^-1 mu_k, with `Sigma^-1 = D * pinv((n - 1) S + tr(S) I)`.
    """

    matrix: Array  # (D, C)
    bias: Array  # (C,)
    weight: float
    prior: float = 1.0
    held_out: Array | None = field(default=None, repr=False)

    def logits(self, features: Sequence[Array], zero_shot: Array) -> Array:
        """Class logits (m, C) from the final embedding, the last of `features`."""
        term = normalise(features[-1]) @ self.matrix + self.bias
        return np.asarray(self.prior * zero_shot + self.weight * term)


Head = Gda | Kernel


def gda_rule(embedding: Array, labels: Array, classes: int) -> tuple[Array, Array]:
    """The discriminant's matrix (D, C) and bias (C,) without the text's part.

    Args:
        embedding: (n, D) at unit length.
        labels: (n,); every class must occur.
        classes: C.

    With one picture per class the shared covariance is zero: the identity takes its place, which
    makes the rule nearest class mean.
    """
    count, width = embedding.shape
    means = np.stack([embedding[labels == c].mean(axis=0) for c in range(classes)])
    residual = embedding - means[labels]
    # the class means are taken away, so the rows' mean is zero and (n - 1) S is the scatter
    trace = float((residual**2).sum()) / max(count - 1, 1)
    if trace < 1e-9:
        matrix = means.T
    elif count < width:
        # Woodbury: an n x n system in place of the D x D inverse; positive definite either way
        inner = np.linalg.solve(residual @ residual.T + trace * np.eye(count), residual @ means.T)
        matrix = (width / trace) * (means.T - residual.T @ inner)
    else:
        scatter = residual.T @ residual + trace * np.eye(width)
        matrix = width * np.linalg.solve(scatter, means.T)
    return matrix, -0.5 * np.einsum("cd,dc->c", means, matrix)


def fit_gda(
    embedding: Array, labels: Array, zero_shot: Array, *, folds: Array | None = None
) -> Gda:
    """Fit the rule; its weight beside zero-shot is chosen by k-fold on the support set.

    Args:
        embedding: (n, D), normalised here.
        labels: (n,).
        zero_shot: (n, C) logits.
        folds: (n,), one fold is left out at a time; None: one picture of every class.
    """
    rows, labels = normalise(embedding), np.asarray(labels)
    zero_shot = np.asarray(zero_shot, np.float64)
    classes = zero_shot.shape[1]
    owners = shot_folds(labels) if folds is None else np.asarray(folds)
    matrix, bias = gda_rule(rows, labels, classes)
    matrix, bias = _unit_spread(matrix, bias, rows)
    term = np.empty_like(zero_shot)
    for fold in np.unique(owners):
        out = owners == fold
        if len(np.unique(labels[~out])) < classes:
            return Gda(matrix, bias, _BLIND_WEIGHT * float(zero_shot.std()))
        part, offset = _unit_spread(*gda_rule(rows[~out], labels[~out], classes), rows[~out])
        term[out] = rows[out] @ part + offset
    (prior, weight), _ = fit_weights([zero_shot, term], labels, start=(1.0, 0.0))
    return Gda(
        matrix, bias, float(weight), float(prior), held_out=prior * zero_shot + weight * term
    )


def _unit_spread(matrix: Array, bias: Array, rows: Array) -> tuple[Array, Array]:
    """The rule in units of its own spread between classes, so that rules of different covariance
    (a fold's, the whole set's) share one weight."""
    term = rows @ matrix + bias
    spread = max(float((term - term.mean(axis=1, keepdims=True)).std()), 1e-12)
    return matrix / spread, bias / spread


def fit_head(
    kind: Kind,
    features: Sequence[Array],
    labels: Array,
    zero_shot: Array,
    *,
    pictures: Array | None = None,
    seed: int = 0,
) -> Head:
    """Fit a head by name.

    Args:
        kind: gda, proker or kernel.
        features: per tap (n, W), the final embedding last (gda and proker read only that).
        labels: (n,) class indices.
        zero_shot: (n, C) logits, scale included.
        pictures: (n,) which picture each row is a view of; None: one row each.
        seed: of the rows the kernel's search samples, where there are many.
    """
    folds = shot_folds(np.asarray(labels), pictures)
    if kind == "gda":
        return fit_gda(features[-1], labels, zero_shot, folds=folds)
    if kind == "proker":
        return fit_proker(features[-1], labels, zero_shot, folds=folds, seed=seed)
    return fit_kernel(features, labels, zero_shot, folds=folds, seed=seed)


def head_arrays(head: Head) -> tuple[dict[str, Array], dict[str, Any]]:
    """A head as named arrays and plain values, for an adapter's two files.

    The kernel keeps only taps with a weight; its support rows are stored in fp16.
    """
    if isinstance(head, Gda):
        arrays = {"matrix": head.matrix.astype("float32"), "bias": head.bias.astype("float32")}
        return arrays, {"kind": "gda", "weight": head.weight, "prior": head.prior}
    arrays = {"alpha": head.alpha.astype("float32")}
    for tap, (centre, support) in enumerate(zip(head.centres, head.support, strict=True)):
        if head.choice.weights[tap] > 0:
            arrays[f"centre.{tap}"] = centre.astype("float32")
            arrays[f"support.{tap}"] = support.astype("float16")
    values = {
        "kind": "kernel" if len(head.centres) > 1 else "proker",
        "weights": list(head.choice.weights),
        "scales": list(head.scales),
        "ridge": head.choice.ridge,
        "temperature": head.choice.temperature,
        "prior": head.choice.prior,
        "loss": None if np.isnan(head.choice.loss) else head.choice.loss,
    }
    return arrays, values


def head_from(arrays: dict[str, Array], values: dict[str, Any]) -> Head:
    """The head that `head_arrays` took apart; support rows are at unit length again.

    Raises:
        IntegrityError: arrays or values are missing, or of an unknown kind.
    """
    try:
        if values["kind"] == "gda":
            return Gda(
                _wide(arrays["matrix"]),
                _wide(arrays["bias"]),
                values["weight"],
                values["prior"],
            )
        if values["kind"] not in KINDS:
            raise KeyError(values["kind"])
        weights = values["weights"]
        used = [weight > 0 for weight in weights]
        empty = np.zeros((0,))
        loss = values.get("loss")
        return Kernel(
            Choice(
                tuple(weights),
                values["ridge"],
                values["temperature"],
                values["prior"],
                float("nan") if loss is None else loss,
            ),
            [_wide(arrays[f"centre.{t}"]) if u else empty for t, u in enumerate(used)],
            [normalise(arrays[f"support.{t}"]) if u else empty for t, u in enumerate(used)],
            list(values["scales"]),
            _wide(arrays["alpha"]),
        )
    except KeyError as error:
        raise IntegrityError(
            f"the adapter's head lacks {error}", remedy="train or copy the adapter again"
        ) from error


def _wide(array: Array) -> Array:
    return np.asarray(array, np.float64)
