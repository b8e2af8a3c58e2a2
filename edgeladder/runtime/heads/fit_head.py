"""A closed-form head fitted after training, from the cache, to count beside the ladder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.runtime.heads.blend import NOISE_NATS, explained_nats
from edgeladder.runtime.heads.closed_form import Head, Kind, fit_head
from edgeladder.runtime.heads.head_inputs import HeadInputs
from edgeladder.runtime.heads.kernel import balanced
from edgeladder.runtime.heads.linear_probe import beside_head
from edgeladder.runtime.heads.refit import refit
from edgeladder.runtime.logits import Activations, ClassLogits, windows
from edgeladder.runtime.logits import Head as AnyHead

if TYPE_CHECKING:
    from edgeladder.runtime.engine.protocol import StepInputs

Array = np.ndarray

# Head and ladder are log-odds at a temperature of their own choosing, so their sum is a product of
# experts. The ladder's own support logits cannot weigh it: it was trained on them.
DEFAULT_HEAD_WEIGHT = 1.0


def fixed_head_weight(
    weight: float | None, full_at: int | None, pictures: int, classes: int
) -> float:
    """The head's weight beside the ladder where nothing held out chooses it.

    Args:
        weight: the profile's `head.weight`; None: 1.
        full_at: the profile's `head.full_at`: from so many pictures of a class the weight counts
            in full, below in proportion; None: always in full.
        pictures: of the training set, all classes together.
        classes: C.

    A head knows what the pictures say, a ladder begins at zero-shot: the fewer pictures, the more
    that beginning is worth.
    """
    if weight is None:
        return DEFAULT_HEAD_WEIGHT
    if full_at is None:
        return float(weight)
    return float(weight) * min(1.0, pictures / (classes * full_at))


def ladder_weight(zero_shot: Array, labels: Array) -> float:
    """The ladder's weight beside a head: what the labels say of zero-shot, which it begins at.

    Of g nats that zero-shot explains of labels it has not seen (`blend.explained_nats`) two may be
    chance: the weight is max(0, 1 - 2 / g), so that a ladder whose beginning is no better than
    chance holds no head down.

    Args:
        zero_shot: (n, C) logits of labelled pictures.
        labels: (n,).
    """
    explained = explained_nats(zero_shot, labels)
    return max(0.0, 1.0 - NOISE_NATS / explained) if explained > 0 else 0.0


def head_sample(labels: Array, labelled: int, most: int, seed: int) -> Array:
    """At most `most` rows, classes alike: those that somebody labelled, and some pseudo-labelled.

    Args:
        labels: (n,) of all training pictures, those with pseudo-labels last.
        labelled: the others, of which at least half of `most` are taken.
        most: as many as a kernel has room for.
        seed: of the sample.
    """
    others = len(labels) - labelled
    classes = int(labels.max()) + 1
    own = balanced(labels[:labelled], max(most - others, most // 2, classes), seed)
    more = balanced(labels[labelled:], max(most - len(own), 0), seed)
    return np.concatenate([own, labelled + more])


def fit_cached_head(
    logits: ClassLogits,
    batches: Iterable[StepInputs],
    kind: Kind,
    *,
    every: Iterable[StepInputs] | None = None,
    linear: bool = False,
    pictures: int | None = None,
    chunk: int = 64,
    seed: int = 0,
) -> Head:
    """Fit a head on the cached training pictures.

    Args:
        logits: the formula that gives zero-shot's.
        batches: windows of the training pictures, or of a sample of them, plain view.
        kind: gda, proker, kernel or blend.
        every: windows of all training pictures where `batches` is of a sample, which then gives
            settings and support; None: of the same.
        linear: a linear map trained with mixup joins it (`linear_probe`).
        pictures: in all that train, where `batches` is of a sample.
        chunk: pictures whose taps are widened to fp32 at a time.
        seed: of the sample that the kernel's search looks at.

    Features are held in fp16 while they are gathered: two bytes per picture and channel, which
    only kernel and blend need for more than the final embedding.
    """
    sample = gathered(logits, batches, "blend" if linear else kind, chunk)
    head = fit_gathered_head(logits, sample, kind, every=every, chunk=chunk, seed=seed)
    if not linear:
        return head
    return beside_head(head, sample, pictures or len(sample.labels), seed=seed)


def fit_gathered_head(
    logits: ClassLogits,
    sample: HeadInputs,
    kind: Kind,
    *,
    every: Iterable[StepInputs] | None = None,
    chunk: int = 64,
    seed: int = 0,
) -> Head:
    """`fit_cached_head` without a linear map, on what was `gathered` before."""
    told = sample.features, sample.labels, sample.zero_shot
    head = fit_head(kind, *told, seed=seed, projected=sample.projected)
    if every is None:
        return head
    rows = _rows(logits, every, kind, chunk)
    return refit(head, told, ((g.features(), known, plain) for g, known, plain in rows))


def gathered(
    logits: ClassLogits, batches: Iterable[StepInputs], kind: Kind, chunk: int
) -> HeadInputs:
    """What a head reads of all pictures; features but the final embedding are float16."""
    parts: list[list[Array]] = []
    labels, zero_shot = [], []
    projected = False
    for given, known, plain in _rows(logits, batches, kind, chunk):
        rows = given.features()
        projected = bool(given.extra)
        parts.append([row.astype(np.float16) for row in rows[:-1]] + [rows[-1]])
        labels.append(known)
        zero_shot.append(plain)
    features = [np.concatenate([part[k] for part in parts]) for k in range(len(parts[0]))]
    return HeadInputs(features, np.concatenate(labels), np.concatenate(zero_shot), projected)


def head_accuracy(
    logits: ClassLogits, head: AnyHead, batches: Iterable[StepInputs], chunk: int
) -> float:
    """Share of the pictures that the head alone names rightly."""
    right, count = 0, 0
    for given, known, plain in _rows(logits, batches, "blend", chunk):
        right += int((head.logits(given.features(), plain).argmax(axis=1) == known).sum())
        count += len(known)
    return right / max(count, 1)


def _rows(
    logits: ClassLogits, batches: Iterable[StepInputs], kind: Kind, chunk: int
) -> Iterator[tuple[Activations, Array, Array]]:
    """Windows' pictures, `chunk` at a time: what a head reads, labels (n,), zero-shot (n, C)."""
    for inputs in batches:
        labels = np.asarray(inputs.labels)
        for window, given in windows(inputs, chunk, embedding_only=kind in ("gda", "proker")):
            yield given, labels[window], logits.similarity(given.embedding, inputs.text_embedding)
