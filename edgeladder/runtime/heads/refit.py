"""A head whose settings and support came from a sample, fitted on all pictures; memory stays.

A kernel on n pictures holds n^2 numbers, so beyond some hundred the settings are searched, and the
support S is taken, on a class-balanced sample. Its m pictures span the functions that the head can
be; which of them it is, all pictures say, a window at a time, in matrices (m, m).

Kernel ridge, restricted to the span of k(., S) (Williams and Seeger, "Using the Nystroem method to
speed up kernel machines", NIPS 2000; Rudi et al., arXiv:1507.04717): with K_SS = U diag(v) U^T and
Phi(x) = k(x, S) U v^-1/2,

    alpha = U v^-1/2 (Phi^T Phi + lambda I)^-1 Phi^T (Y - base)

Discriminant: rows' coordinates Z = X B in an orthonormal basis B of the sample's rows, in which
scatter, means and rule are exact; what a row has outside of them counts in the trace alone.

Over the sample itself both are the head as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from edgeladder.runtime.heads.closed_form import Blend, Gda, Head, beside
from edgeladder.runtime.heads.discriminant import rule_of_moments
from edgeladder.runtime.heads.kernel import Kernel, centred, gram
from edgeladder.runtime.logits import softmax

Array = np.ndarray

Rows = tuple[Sequence[Array], Array, Array]  # features per tap (n, W), labels (n,), zero-shot
_KERNEL_FLOOR = 1e-5  # of the ridge: what lies below an eigenvalue so small, it holds back anyway
_BASIS_FLOOR = 1e-6  # of the largest: below it is float32's rounding


def refit(head: Head, sample: Rows, windows: Iterable[Rows]) -> Head:
    """The head with its settings, fitted on all windows' pictures.

    Args:
        head: fitted on the sample; its held-out logits are kept.
        sample: features, labels and zero-shot logits that it was fitted on.
        windows: of all pictures, the sample's among them; float32 or float16.

    Returns:
        A head of the same size, which is used as the first one was.
    """
    parts = head.heads if isinstance(head, Blend) else [head]
    sums = [_sums(part, sample) for part in parts]
    for features, labels, zero_shot in windows:
        wide = [np.asarray(tap, np.float32) for tap in features]
        for one in sums:
            one.add(wide, labels, zero_shot)
    done = [one.solve() for one in sums]
    return Blend(done) if isinstance(head, Blend) else done[0]


def _sums(part: Gda | Kernel, sample: Rows) -> _KernelSums | _GdaSums:
    classes = sample[2].shape[1]
    return _KernelSums(part, classes) if isinstance(part, Kernel) else _GdaSums(part, sample)


class _KernelSums:
    """Normal equations of kernel ridge over what the support spans."""

    def __init__(self, kernel: Kernel, classes: int):
        self.kernel, self.classes = kernel, classes
        self._rates = kernel.rates
        self._lengths = {tap: (kernel.support[tap] ** 2).sum(axis=1) for tap in self._rates}
        # in float64: no eigenvalue may be negative by more than is cut off
        wide = ((rate, kernel.support[tap].astype(np.float64)) for tap, rate in self._rates.items())
        own = gram((len(kernel.alpha),) * 2, ((rate, rows, rows) for rate, rows in wide))
        values, vectors = np.linalg.eigh(own)
        kept = values > _KERNEL_FLOOR * kernel.choice.ridge
        self._whiten = vectors[:, kept] / np.sqrt(values[kept])  # (m, r)
        rank = self._whiten.shape[1]
        self._left, self._right = np.zeros((rank, rank)), np.zeros((rank, classes))
        self._product = np.empty((rank, rank))  # a window's, in memory that is there

    def add(self, features: Sequence[Array], labels: Array, zero_shot: Array) -> None:
        """A window: features per tap (n, W), labels (n,), zero-shot logits (n, C)."""
        kernel = self.kernel
        features = features[-len(kernel.centres) :]
        total = np.zeros((len(labels), len(kernel.alpha)), np.float32)
        for tap, rate in self._rates.items():  # as `gram`, without its arrays made anew
            rows = centred(features[tap], kernel.centres[tap])
            apart = rows @ kernel.support[tap].T  # squared distances, in place from here on
            apart *= -2.0
            apart += self._lengths[tap]
            apart += (rows**2).sum(axis=1)[:, None]
            np.maximum(apart, 0.0, out=apart)
            apart *= rate
            total -= apart
        coordinates = np.exp(total, out=total) @ self._whiten
        residuals = np.eye(self.classes)[labels] - softmax(kernel.choice.base * zero_shot)
        self._left += np.matmul(coordinates.T, coordinates, out=self._product)
        self._right += coordinates.T @ residuals

    def solve(self) -> Kernel:
        """The kernel with new coefficients on its old support."""
        self._left[np.diag_indices_from(self._left)] += self.kernel.choice.ridge
        alpha = self._whiten @ np.linalg.solve(self._left, self._right)
        return replace(self.kernel, alpha=alpha)


class _GdaSums:
    """Moments of all rows in the coordinates of the sample's."""

    def __init__(self, rule: Gda, sample: Rows):
        self.rule = rule
        features, _, zero_shot = sample
        rows = beside(features, rule.reads)
        values, vectors = np.linalg.eigh(rows @ rows.T)
        kept = values > _BASIS_FLOOR * values[-1]
        self._basis = (rows.T @ (vectors[:, kept] / np.sqrt(values[kept]))).astype(np.float32)
        rank, classes = self._basis.shape[1], zero_shot.shape[1]
        del rows
        self._second, self._product = np.zeros((rank, rank)), np.empty((rank, rank))  # Z^T Z
        self._sums, self._counts = np.zeros((classes, rank)), np.zeros(classes)
        self._outside = 0.0  # squared lengths that the basis does not hold

    def add(self, features: Sequence[Array], labels: Array, zero_shot: Array) -> None:
        """A window, as `_KernelSums.add` takes it."""
        rows = beside(features, self.rule.reads).astype(np.float32)
        inside = (rows @ self._basis).astype(np.float64)
        onehot = np.eye(len(self._counts))[labels]
        self._second += np.matmul(inside.T, inside, out=self._product)
        self._sums += onehot.T @ inside
        self._counts += onehot.sum(axis=0)
        lengths = float(np.einsum("nd,nd->", rows, rows, dtype=np.float64))
        self._outside += max(0.0, lengths - float((inside**2).sum()))

    def solve(self) -> Gda:
        """The discriminant of all rows, in units of its spread over them."""
        matrix, bias = rule_of_moments(self._second, self._sums, self._counts, self._outside)
        return replace(self.rule, matrix=self._basis @ matrix, bias=bias)
