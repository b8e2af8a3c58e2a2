"""Whether a picture is of a known class at all: how near it lies to the support pictures.

    known(x) = mean cosine of x to its three nearest support pictures

after Sun et al., "Out-of-distribution detection with deep nearest neighbors", arXiv:2204.06507, who
take the k-th alone. The features are CLIP's before its projection where the bundle has them, else
the last tap and the final embedding, each at unit length.

The threshold is chosen on the support set itself, each picture scored without itself, so that at
most 5 % of known pictures lie below. With one picture a class none of its own class is left: then
the scores are lower than those of new pictures, and so is the threshold; fewer are refused, and
fewer strangers found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.adapter_record import KnownRecord
from edgeladder.core.errors import IntegrityError
from edgeladder.runtime.heads.closed_form import beside
from edgeladder.runtime.heads.kernel import normalise
from edgeladder.runtime.logits import Activations, windows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgeladder.runtime.engine.protocol import StepInputs

Array = np.ndarray

NEIGHBOURS = 3
REFUSED = 0.05  # of known pictures, at most
_COUNTED = 60  # scores: of fewer, 5 % are too few to count off, and their spread must say
_QUANTILE = 1.6448536269514722  # of the normal distribution: 95 % lie below
_FIRST = (6.313752, 2.919986, 2.353363, 2.131847)  # Student's t for 1 to 4 degrees of freedom
_BLOCK = 128  # rows that are compared at a time
ROWS = "support"  # the array's name in an adapter


@dataclass(frozen=True)
class Known:
    """Support rows to be near to, and how near is near enough."""

    record: KnownRecord
    support: Array  # (n, W) float32, at unit length

    @classmethod
    def of(cls, record: KnownRecord, arrays: Mapping[str, Array]) -> Known:
        """What an adapter stores.

        Raises:
            IntegrityError: the rows are missing, or no rows.
        """
        if ROWS not in arrays or arrays[ROWS].ndim != 2 or not arrays[ROWS].size:
            raise IntegrityError(
                "the adapter lacks the pictures that known ones are near to",
                remedy="train or copy the adapter again",
            )
        return cls(record, _unit_rows(arrays[ROWS]))

    def scores(self, features: Sequence[Array]) -> Array:
        """Scores (m,) float32, -1 to 1, from what `Activations.features` gives."""
        rows = _unit(features, self.record.reads)
        return np.asarray(nearest(rows @ self.support.T, self.record.neighbours), np.float32)

    def refuses(self, score: float) -> bool:
        """Whether a score is below the threshold."""
        return score < self.record.threshold


def _unit(features: Sequence[Array], reads: Sequence[int]) -> Array:
    """The features side by side, as long as one of them: a dot product is their mean cosine."""
    return np.asarray(normalise(beside(features, reads)), np.float32)


def _unit_rows(stored: Array) -> Array:
    """Rows at unit length, float32: they were rounded to float16."""
    rows = np.array(stored, np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def nearest(likeness: Array, neighbours: int) -> Array:
    """The mean of each row's largest values, (m,)."""
    count = min(neighbours, likeness.shape[1])
    return np.asarray(np.sort(likeness, axis=1)[:, -count:].mean(axis=1))


def fit_known(batches: Iterable[StepInputs], *, chunk: int = 64) -> tuple[KnownRecord, Array]:
    """Rows and threshold from cached training pictures, plain view.

    Args:
        batches: windows of the pictures that are kept.
        chunk: pictures whose taps are widened to fp32 at a time.

    Returns:
        What the adapter says, and its rows (n, W) float16.
    """
    parts: list[Array] = []
    reads: tuple[int, ...] = (-2,)
    for inputs in batches:
        projected = bool(inputs.image_extra)
        reads = (-2,) if projected else (-2, -1)
        for window, given in windows(inputs, chunk, embedding_only=projected):
            extra = {name: rows[window] for name, rows in inputs.image_extra.items()}
            features = Activations(given.taps, given.embedding, extra).features()
            parts.append(_unit(features, reads).astype(np.float16))
    rows = _joined(parts)
    scores = left_out_scores(rows, NEIGHBOURS, _unit_rows)
    threshold = choose_threshold(scores)
    return KnownRecord(
        threshold=threshold, neighbours=NEIGHBOURS, reads=reads, pictures=len(scores)
    ), rows


def _joined(parts: list[Array]) -> Array:
    """Parts under one another, each let go once it is copied: they are as large as the whole."""
    rows = np.empty((sum(map(len, parts)), parts[0].shape[1]), parts[0].dtype)
    stop = len(rows)
    while parts:
        part = parts.pop()
        rows[stop - len(part) : stop] = part
        stop -= len(part)
    return rows


def left_out_scores(
    rows: Array, neighbours: int, read: Callable[[Array], Array] = lambda stored: stored
) -> Array:
    """Every unit row's score among the others, (n,); none of a single row.

    Args:
        rows: (n, W).
        neighbours: whose mean it is.
        read: makes unit rows of some of them, which are wide: all at once are more than the rest.
    """
    count = len(rows)
    if count < 2:
        return np.zeros(0)
    scores = []
    for start in range(0, count, _BLOCK):
        own = read(rows[start : start + _BLOCK])
        likeness = np.empty((len(own), count), own.dtype)
        for other in range(0, count, _BLOCK):
            window = slice(other, other + _BLOCK)
            likeness[:, window] = own @ (own if other == start else read(rows[window])).T
        places = np.arange(len(own))
        likeness[places, start + places] = -np.inf
        scores.append(nearest(likeness, min(neighbours, count - 1)))
    return np.concatenate(scores)


def choose_threshold(scores: Array, share: float = REFUSED) -> float:
    """The score that at most `share` of known pictures are below.

    Of many held-out scores the one that so many lie below; `floor(share (n + 1))` keeps the promise
    for the next picture whatever the distribution (conformal prediction). Of few the lower end of
    Student's prediction interval, `mean - t sd sqrt(1 + 1/n)`. Nothing is refused where there are
    not two scores.
    """
    count = len(scores)
    if count < 2:
        return -1.0
    if count >= _COUNTED:
        return float(np.sort(scores)[math.floor(share * (count + 1)) - 1])
    reach = student_quantile(count - 1) * float(scores.std(ddof=1)) * math.sqrt(1 + 1 / count)
    return max(float(scores.mean()) - reach, -1.0)


def student_quantile(freedom: int) -> float:
    """The 95 % quantile of Student's t: a table, then the Cornish-Fisher expansion.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5; within 0.002.
    """
    if freedom <= len(_FIRST):
        return _FIRST[freedom - 1]
    z, n = _QUANTILE, float(freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3
