"""Closed-form heads on cached features: GDA, ProKeR, the multi-tap kernel, and the last two's mean.

A head is fitted in well under a second, without an optimiser. Alone it classifies; beside a
ladder it counts by a weight (`logits.ClassLogits`). Its features are the taps (flattened) and,
last, CLIP's final embedding; before it, where the bundle has one, the embedding before CLIP's
projection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from edgeladder.core.adapter_record import (
    BlendRecord,
    GdaRecord,
    HeadRecord,
    KernelRecord,
    StoredHead,
)
from edgeladder.core.errors import IntegrityError
from edgeladder.runtime.heads.blend import fit_weights
from edgeladder.runtime.heads.discriminant import gda_rule, held_out_terms, unit_spread
from edgeladder.runtime.heads.kernel import (
    Kernel,
    fit_kernel,
    fit_proker,
    normalise,
    shot_folds,
)
from edgeladder.runtime.heads.kernel_search import Choice
from edgeladder.runtime.logits import ClassLogits

Array = np.ndarray
Kind = Literal["gda", "proker", "kernel", "blend"]

KINDS: tuple[Kind, ...] = ("gda", "proker", "kernel", "blend")
_BLIND_WEIGHT = 1.0  # of GDA at one picture a class, in units of the zero-shot logits' spread
_BLIND_TERM = 2.0  # the same where zero-shot counts by what the labels say of it: log-odds


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
    reads: tuple[int, ...] = (-1,)  # which features, side by side; the final embedding
    held_out: Array | None = field(default=None, repr=False)

    def logits(self, features: Sequence[Array], zero_shot: Array) -> Array:
        """Class logits (m, C) from the features it reads."""
        term = beside(features, self.reads) @ self.matrix + self.bias
        return np.asarray(self.prior * zero_shot + self.weight * term)


@dataclass
class Blend:
    """The mean of several heads' logits: they err differently, and none is chosen by noise."""

    heads: list[Gda | Kernel]

    def logits(self, features: Sequence[Array], zero_shot: Array) -> Array:
        """Class logits (m, C)."""
        return np.asarray(np.mean([head.logits(features, zero_shot) for head in self.heads], 0))

    @property
    def held_out(self) -> Array | None:
        """(n, C) left out by fold, where all of them were."""
        parts = [head.held_out for head in self.heads]
        found = [part for part in parts if part is not None]
        return np.asarray(np.mean(found, 0)) if len(found) == len(parts) else None


Head = Gda | Kernel | Blend


def beside(features: Sequence[Array], reads: Sequence[int]) -> Array:
    """Some features at unit length, side by side: (n, sum of widths)."""
    return np.concatenate([normalise(features[place]) for place in reads], axis=1)


def fit_gda(
    features: Sequence[Array],
    labels: Array,
    zero_shot: Array,
    *,
    folds: Array | None = None,
    reads: tuple[int, ...] = (-1,),
) -> Gda:
    """Fit the rule; its weight beside zero-shot is chosen by k-fold on the support set.

    Args:
        features: per tap (n, W), normalised here.
        labels: (n,).
        zero_shot: (n, C) logits.
        folds: (n,), one fold is left out at a time; None: one picture of every class.
        reads: which of the features; the paper's is the final embedding.
    """
    rows, labels = beside(features, reads), np.asarray(labels)
    zero_shot = np.asarray(zero_shot, np.float64)
    classes = zero_shot.shape[1]
    owners = shot_folds(labels) if folds is None else np.asarray(folds)
    matrix, bias = unit_spread(*gda_rule(rows, labels, classes), rows)
    term = held_out_terms(rows, labels, owners, classes)
    if term is None:
        if reads == (-1,):
            return Gda(matrix, bias, _BLIND_WEIGHT * float(zero_shot.std()))
        trust = fit_weights([zero_shot], labels)[0][0]  # zero-shot has seen no label
        return Gda(matrix, bias, _BLIND_TERM, float(trust), reads)
    (prior, weight), _ = fit_weights([zero_shot, term], labels, start=(1.0, 0.0))
    held_out = prior * zero_shot + weight * term
    return Gda(matrix, bias, float(weight), float(prior), reads, held_out)


def fit_head(
    kind: Kind,
    features: Sequence[Array],
    labels: Array,
    zero_shot: Array,
    *,
    pictures: Array | None = None,
    seed: int = 0,
    projected: bool = False,
) -> Head:
    """Fit a head by name.

    Args:
        kind: gda, proker, kernel, or blend: the mean of kernel and of gda on the last tap and
            the embedding before the projection (after it where there is no other).
        features: per tap (n, W), the final embedding last (gda and proker read only that).
        labels: (n,) class indices.
        zero_shot: (n, C) logits, scale included.
        pictures: (n,) which picture each row is a view of; None: one row each.
        seed: of the rows the kernel's search samples, where there are many.
        projected: the last feature but one is the embedding before CLIP's projection.
    """
    folds = shot_folds(np.asarray(labels), pictures)
    if kind == "gda":
        return fit_gda(features, labels, zero_shot, folds=folds)
    if kind == "proker":
        return fit_proker(features[-1], labels, zero_shot, folds=folds, seed=seed)
    kernel = fit_kernel(features, labels, zero_shot, folds=folds, seed=seed)
    if kind == "kernel":
        return kernel
    reads = (-3, -2) if projected else (-2, -1)
    return Blend([kernel, fit_gda(features, labels, zero_shot, folds=folds, reads=reads)])


def head_arrays(head: Head) -> tuple[dict[str, Array], HeadRecord]:
    """A head as named arrays and plain values, for an adapter's two files.

    The kernel keeps only taps with a weight; its support rows are stored in fp16.
    """
    if isinstance(head, Blend):
        parts = [_part_arrays(part) for part in head.heads]
        named = {f"{k}.{n}": a for k, (arrays, _) in enumerate(parts) for n, a in arrays.items()}
        return named, BlendRecord(heads=tuple(record for _, record in parts))
    return _part_arrays(head)


def _part_arrays(head: Gda | Kernel) -> tuple[dict[str, Array], GdaRecord | KernelRecord]:
    if isinstance(head, Gda):
        arrays = {"matrix": head.matrix.astype("float32"), "bias": head.bias.astype("float32")}
        return arrays, GdaRecord(weight=head.weight, prior=head.prior, reads=head.reads)
    choice = head.choice
    arrays = {"alpha": head.alpha.astype("float32")}
    for tap, (centre, support) in enumerate(zip(head.centres, head.support, strict=True)):
        if choice.weights[tap] > 0:
            arrays[f"centre.{tap}"] = centre.astype("float32")
            arrays[f"support.{tap}"] = support.astype("float16")
    return arrays, KernelRecord(
        kind="kernel" if len(head.centres) > 1 else "proker",
        weights=choice.weights,
        scales=tuple(head.scales),
        ridge=choice.ridge,
        temperature=choice.temperature,
        prior=choice.prior,
        loss=None if np.isnan(choice.loss) else choice.loss,
        base=choice.base,
    )


def head_from(arrays: Mapping[str, Array], record: HeadRecord) -> Head:
    """The head that `head_arrays` took apart; support rows are at unit length again.

    Raises:
        IntegrityError: arrays are missing, or of other dimensions.
    """
    try:
        if not isinstance(record, BlendRecord):
            return _part_from(arrays, record)
        heads = []
        for place, part in enumerate(record.heads):
            tag = f"{place}."
            inner = {n.removeprefix(tag): a for n, a in arrays.items() if n.startswith(tag)}
            heads.append(_part_from(inner, part))
        return Blend(heads)
    except KeyError as error:
        raise IntegrityError(
            f"the adapter's head lacks {error}", remedy="train or copy the adapter again"
        ) from error
    except (ValueError, TypeError, IndexError) as error:  # arrays of other dimensions
        raise IntegrityError(
            f"the adapter's head is none: {error}", remedy="train or copy the adapter again"
        ) from error


def _part_from(arrays: Mapping[str, Array], record: GdaRecord | KernelRecord) -> Gda | Kernel:
    if isinstance(record, GdaRecord):
        matrix, bias = _wide(arrays["matrix"]), _wide(arrays["bias"])
        return Gda(matrix, bias, record.weight, record.prior, record.reads)
    used = [weight > 0 for weight in record.weights]
    empty = np.zeros((0,))
    loss = float("nan") if record.loss is None else record.loss
    return Kernel(
        Choice(record.weights, record.ridge, record.temperature, record.prior, loss, record.base),
        [_wide(arrays[f"centre.{t}"]) if u else empty for t, u in enumerate(used)],
        [
            normalise(arrays[f"support.{t}"]).astype(np.float32) if u else empty
            for t, u in enumerate(used)
        ],
        list(record.scales),
        _wide(arrays["alpha"]),
    )


def with_stored_head(
    logits: ClassLogits, stored: StoredHead | None, arrays: Mapping[str, Array]
) -> ClassLogits:
    """The formula beside the head that an adapter stores; as it is where it stores none.

    Raises:
        IntegrityError: arrays are missing.
    """
    if stored is None:
        return logits
    head = head_from(arrays, stored.rule)
    return logits.with_head(head, stored.head_weight, stored.ladder_weight)


def of_classes(head: Head, classes: Sequence[int]) -> Head:
    """The head as it speaks of some of its classes, in the order given.

    Every class's logit is of its own column, so what is left says the same.
    """
    if isinstance(head, Blend):
        return Blend([_part_of(part, list(classes)) for part in head.heads])
    return _part_of(head, list(classes))


def _part_of(head: Gda | Kernel, classes: list[int]) -> Gda | Kernel:
    if isinstance(head, Gda):
        matrix, bias = head.matrix[:, classes], head.bias[classes]
        return replace(head, matrix=matrix, bias=bias, held_out=None)
    return replace(head, alpha=head.alpha[:, classes], held_out=None)


def _wide(array: Array) -> Array:
    return np.asarray(array, np.float64)
