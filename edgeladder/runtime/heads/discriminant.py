"""Gaussian discriminant analysis, arXiv:2402.04087: the rule, and what it says of what is left out.

    Sigma = S + t I,  S = R^T R,  t = tr(S) / (n - 1)
    rule  = x Sigma^-1 mu_c - 1/2 mu_c Sigma^-1 mu_c

with R the rows less their class's mean. The paper's factor D before the inverse is a scale that the
weight beside zero-shot takes up.

Leaving a fold out changes S by a matrix whose rank is the fold's pictures: of each class c, of
whose n_c pictures m are left out with residuals U,

    S' = S - U^T (I + 1 1^T / (n_c - m)) U

so one eigendecomposition of S serves every fold, by Woodbury's formula (Hager, "Updating the
inverse of a matrix", SIAM Review 31, 1989); `(I + 1 1^T / (n_c - m))^-1 = I - 1 1^T / n_c`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

_NONE = 1e-9  # a scatter's trace below: every class is one point, and the identity takes its place


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
    residual = means[labels]
    np.subtract(embedding, residual, out=residual)
    # the class means are taken away, so the rows' mean is zero and (n - 1) S is the scatter
    trace = float(np.einsum("nd,nd->", residual, residual)) / max(count - 1, 1)
    if trace < _NONE:
        matrix = means.T
    elif count < width:
        # Woodbury: an n x n system in place of the D x D inverse; positive definite either way
        inner = np.linalg.solve(residual @ residual.T + trace * np.eye(count), residual @ means.T)
        matrix = (width / trace) * (means.T - residual.T @ inner)
    else:
        scatter = residual.T @ residual + trace * np.eye(width)
        matrix = width * np.linalg.solve(scatter, means.T)
    return matrix, -0.5 * np.einsum("cd,dc->c", means, matrix)


def unit_spread(matrix: Array, bias: Array, rows: Array) -> tuple[Array, Array]:
    """The rule in units of its own spread between classes over `rows` (n, D).

    So rules of different covariance (a fold's, the whole set's) share one weight.
    """
    term = rows @ matrix + bias
    spread = max(float((term - term.mean(axis=1, keepdims=True)).std()), 1e-12)
    return matrix / spread, bias / spread


def rule_of_moments(
    second: Array, sums: Array, counts: Array, outside: float
) -> tuple[Array, Array]:
    """`gda_rule` and `unit_spread` from sums over rows Z (n, r) that were never there together.

    Args:
        second: Z^T Z, (r, r).
        sums: of each class's rows, (C, r).
        counts: rows of each class, (C,), none of them zero.
        outside: squared lengths that belong to the trace, though not to these coordinates.

    Returns:
        Matrix (r, C) and bias (C,), in units of the rule's own spread between classes.
    """
    count, means = float(counts.sum()), sums / counts[:, None]
    scatter = second - (means.T * counts) @ means
    trace = max(float(np.trace(scatter)) + outside, 0.0) / max(count - 1, 1)
    if trace < _NONE:
        matrix = means.T
    else:
        scatter[np.diag_indices_from(scatter)] += trace
        matrix = np.linalg.solve(scatter, means.T)
    bias = -0.5 * np.einsum("cd,dc->c", means, matrix)
    # of the terms z M + b less their mean over the classes
    apart, level = matrix - matrix.mean(axis=1, keepdims=True), bias - bias.mean()
    squares = float(np.einsum("rc,rc->", apart, second @ apart))
    squares += 2.0 * float(level @ (sums.sum(axis=0) @ apart)) + count * float(level @ level)
    spread = max(np.sqrt(max(squares, 0.0) / (count * len(counts))), 1e-12)
    return matrix / spread, bias / spread


@dataclass(frozen=True)
class _Scatter:
    """Rows in the eigenvectors of their scatter within classes, r = min(n, D) of them."""

    rows: Array  # (n, r)
    means: Array  # (C, r)
    counts: Array  # (C,) pictures of each class
    values: Array  # (r,) eigenvalues

    @classmethod
    def of(cls, rows: Array, labels: Array, classes: int) -> _Scatter:
        """Of rows (n, D) and labels (n,); every class must occur."""
        if len(rows) < rows.shape[1]:
            # distances and inner products are all that counts: n coordinates say the same
            values, vectors = np.linalg.eigh(rows @ rows.T)
            rows = vectors * np.sqrt(np.maximum(values, 0.0))
        counts = np.bincount(labels, minlength=classes).astype(np.float64)
        means = (np.eye(classes)[labels] / counts[labels, None]).T @ rows
        residuals = means[labels]
        np.subtract(rows, residuals, out=residuals)
        values, vectors = np.linalg.eigh(residuals.T @ residuals)
        del residuals  # as large as the rows
        return cls(rows @ vectors, means @ vectors, counts, np.maximum(values, 0.0))

    def without(self, out: Array, labels: Array) -> tuple[Array, Array]:
        """Matrix (r, C) and bias (C,) of the rule without the rows `out` (k,)."""
        gone = labels[out]
        residuals = self.rows[out] - self.means[gone]
        same = gone[:, None] == gone[None, :]  # (k, k)
        member = np.eye(len(self.counts))[gone]  # (k, C)
        left = self.counts - member.sum(axis=0)
        means = (self.counts[:, None] * self.means - member.T @ self.rows[out]) / left[:, None]
        products = residuals @ residuals.T
        lost = float(np.trace(products) + (products * same / left[gone]).sum())
        trace = (float(self.values.sum()) - lost) / max(float(left.sum()) - 1, 1.0)
        if trace < _NONE:
            matrix = means.T
        else:
            inverse = 1.0 / (self.values + trace)
            scaled = residuals * inverse
            inner = np.eye(len(out)) - same / self.counts[gone] - scaled @ residuals.T
            matrix = inverse[:, None] * means.T
            matrix += scaled.T @ np.linalg.solve(inner, scaled @ means.T)
        return matrix, -0.5 * np.einsum("cd,dc->c", means, matrix)


def held_out_terms(rows: Array, labels: Array, folds: Array, classes: int) -> Array | None:
    """What rules fitted without each fold say of it, in units of their spread over the rest.

    Args:
        rows: (n, D) at unit length.
        labels: (n,).
        folds: (n,) rows of a fold are left out together.
        classes: C.

    Returns:
        (n, C); None where some fold holds all that there is of a class.
    """
    names = np.unique(folds)
    for fold in names:
        if len(np.unique(labels[folds != fold])) < classes:
            return None
    scatter = _Scatter.of(rows, labels, classes)
    found = np.empty((len(labels), classes))
    for fold in names:
        out = folds == fold
        matrix, bias = scatter.without(np.flatnonzero(out), labels)
        term = scatter.rows @ matrix + bias
        term -= term.mean(axis=1, keepdims=True)
        spread = max(float(term[~out].std()), 1e-12)
        # as the rule says it: what it adds to every class alike counts beside zero-shot's spread
        found[out] = (scatter.rows[out] @ matrix + bias) / spread
    return found
