"""Kernel ridge without each fold, in closed form, from one factorisation.

    left out of g = R_g - inv(A_gg) (A R)_g,  A = (K + lambda I)^-1

(Rasmussen and Williams, Gaussian Processes for Machine Learning, 5.4.2, of one row at a time; the
block form is the same identity.) Of A only the folds' own blocks are needed. With the Cholesky
factor L of K + lambda I and X = L^-1 they are products of X's columns, and X is made of matrix
products: several times faster than an eigendecomposition, and as stable as a Cholesky
factorisation, so that float32 serves where four digits do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Array = np.ndarray

_LEAF = 40  # rows factorised at once: below, calls cost more than products save


def inverse_factor(gram: Array, ridge: float) -> Array:
    """X (n, n), lower triangular, with X^T X = (K + ridge I)^-1, in K's dtype.

    Args:
        gram: K (n, n), positive definite but for rounding.
        ridge: above 0.

    By halves: of `[[A, .], [B, C]]` with L = `[[L1, 0], [M, L2]]` it is M = B X1^T,
    L2 L2^T = C - M M^T and X = `[[X1, 0], [-X2 M X1, X2]]`.
    """
    factor = gram.copy()
    factor[np.diag_indices_from(factor)] += np.asarray(ridge, gram.dtype)
    _factorise(factor)
    return factor


def _factorise(matrix: Array) -> None:
    """Put X in a symmetric positive definite view's place."""
    count = len(matrix)
    if count <= _LEAF:
        matrix[...] = np.linalg.inv(np.linalg.cholesky(matrix))
        return
    half = count // 2
    first, beside, second = matrix[:half, :half], matrix[half:, :half], matrix[half:, half:]
    _factorise(first)
    lower = beside @ first.T
    second -= lower @ lower.T
    _factorise(second)
    np.matmul(second, lower @ first, out=beside)
    np.negative(beside, out=beside)
    matrix[:half, half:] = 0


@dataclass(frozen=True)
class Folds:
    """Folds of rows that stand in the folds' order, folds of one size together."""

    groups: tuple[tuple[int, Array], ...]  # rows of each fold, and where every such fold begins

    @classmethod
    def of(cls, folds: Array) -> Folds:
        """Of fold numbers (n,), in order."""
        starts, sizes = np.unique(folds, return_index=True, return_counts=True)[1:]
        return cls(tuple((int(size), starts[sizes == size]) for size in np.unique(sizes)))


def leave_out(factor: Array, targets: Array, folds: Folds) -> Array:
    """What each row's prediction would be, had its fold not been fitted, in closed form.

    Args:
        factor: (n, n) of `inverse_factor` over all rows, which stand in the folds' order.
        targets: (n, C) that the kernel ridge fits.
        folds: rows of a fold are left out together.

    Returns:
        (n, C): `R_g - inv(A_gg) (A R)_g` per fold g; for single rows `R - (A R) / diag(A)`.
    """
    product = factor.T @ (factor @ targets)
    left: Array = np.empty_like(product)
    for size, starts in folds.groups:
        blocks = _own_blocks(factor, starts, size)
        rows = starts[:, None] + np.arange(size)
        left[rows] = targets[rows] - np.linalg.solve(blocks, product[rows])
    return left


def _own_blocks(factor: Array, starts: Array, size: int) -> Array:
    """A's blocks (folds, size, size) of folds that begin at `starts`."""
    if size == 1:
        columns = factor[:, starts]
        return np.asarray(np.einsum("nf,nf->f", columns, columns)[:, None, None])
    blocks = np.empty((len(starts), size, size), factor.dtype)
    for place, start in enumerate(starts):
        own = factor[start:, start : start + size]  # zero above
        np.matmul(own.T, own, out=blocks[place])
    return blocks
