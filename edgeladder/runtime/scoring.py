"""Accuracy counted as pictures pass by: memory grows with the classes, not with the pictures.

Nothing heavier than numpy is imported here, because the evaluation worker counts inside the
budget.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.intervals import wilson
from edgeladder.core.records import to_json
from edgeladder.runtime.calibration import Calibration
from edgeladder.runtime.logits import ClassEmbeddings, ClassLogits, class_embeddings, windows

if TYPE_CHECKING:
    from edgeladder.runtime.engine.protocol import Engine, StepInputs

Array = np.ndarray
Watch = Callable[[Array, Array, Array], None]
_COUNTS = (np.uint8, np.uint16, np.uint32, np.int64)  # of the matrix, as its largest count grows


class Score:
    """Confusion counts of the tuned classifier and hits of zero-shot."""

    def __init__(self, classes: Sequence[str]):
        self.classes = list(classes)
        size = len(self.classes)
        self.confusion: Array = np.zeros((size, size), _COUNTS[0])  # true, predicted
        self._most = 0  # an upper bound of its counts
        self.zero_shot_hits = np.zeros(size, np.int64)
        self.calibration = Calibration()

    def add(self, labels: Array, tuned: Array, zero_shot: Array) -> None:
        """Count one batch: labels (n,), logits (n, C) twice."""
        self._make_room(len(labels))
        np.add.at(self.confusion, (labels, tuned.argmax(axis=1)), 1)
        self.calibration.add(labels, tuned)
        np.add.at(self.zero_shot_hits, labels[zero_shot.argmax(axis=1) == labels], 1)

    def _make_room(self, more: int) -> None:
        """Widen the counts where so many further ones could overflow one of them."""
        self._most += more
        if self._most > np.iinfo(self.confusion.dtype).max:
            self._most = int(self.confusion.max(initial=0)) + more
            kind = next(kind for kind in _COUNTS if np.iinfo(kind).max >= self._most)
            self.confusion = self.confusion.astype(kind)

    def to_dict(self, split: str, *, to_write: bool = False) -> dict[str, Any]:
        """The `evaluate` JSON; classes without pictures have accuracy None.

        Args:
            split: named in it.
            to_write: its confusion is not lists yet, and becomes them row by row as it is written.
        """
        totals = self.confusion.sum(axis=1)
        hits = np.diag(self.confusion)
        count = int(totals.sum())
        reliability = self.calibration.result()

        def share(part: int, whole: int) -> float | None:
            return float(part / whole) if whole else None

        return {
            "accuracy": share(int(hits.sum()), count),
            "zero_shot_accuracy": share(int(self.zero_shot_hits.sum()), count),
            "count": count,
            "split": split,
            "interval": wilson(int(hits.sum()), count),
            "zero_shot_interval": wilson(int(self.zero_shot_hits.sum()), count),
            "calibration": None if reliability is None else to_json(reliability),
            "classes": self.classes,
            "per_class": {
                name: {
                    "count": int(totals[k]),
                    "accuracy": share(int(hits[k]), int(totals[k])),
                    "zero_shot_accuracy": share(int(self.zero_shot_hits[k]), int(totals[k])),
                    "interval": wilson(int(hits[k]), int(totals[k])),
                    "zero_shot_interval": wilson(int(self.zero_shot_hits[k]), int(totals[k])),
                }
                for k, name in enumerate(self.classes)
            },
            "confusion": _Rows(self.confusion) if to_write else self.confusion.tolist(),
        }


class _Rows(list[list[int]]):
    """A matrix as JSON writes it, one row in memory at a time.

    Of a thousand classes the lists are a million numbers, and their text as much again. A list by
    name alone, because that is what `json` asks for.
    """

    def __init__(self, matrix: Array):
        super().__init__()
        self._matrix = matrix

    def __len__(self) -> int:
        return len(self._matrix)

    def __iter__(self) -> Iterator[list[int]]:
        return (row.tolist() for row in self._matrix)


def evaluate_cached(
    engine: Engine,
    logits: ClassLogits,
    batches: Iterable[StepInputs],
    classes: Sequence[str],
    *,
    split: str = "test",
    chunk: int = 64,
    watch: Watch | None = None,
    to_write: bool = False,
) -> dict[str, Any]:
    """Accuracy over cached pictures.

    Args:
        engine: with the trained parameters.
        logits: the formula, with a head or without.
        batches: windows of pictures, all against the same classes.
        classes: folder names, in label order.
        split: named in the result.
        chunk: pictures or classes encoded at a time.
        watch: told labels (n,) and logits (n, C), tuned and zero-shot, in the order of pictures.
        to_write: as `Score.to_dict` has it.

    Returns:
        The `evaluate` JSON of the design: `accuracy`, `zero_shot_accuracy`, `count`, `split`,
        `classes`, `per_class`, `confusion`, `calibration`, intervals; accuracies None where there
        are no pictures.
    """
    score = Score(classes)
    embeddings: ClassEmbeddings | None = None
    for inputs in batches:
        if embeddings is None:
            embeddings = class_embeddings(engine, inputs, chunk)
        for window, given in windows(inputs, chunk):
            tuned, zero_shot = logits.classify(engine, given, embeddings)
            labels = np.asarray(inputs.labels[window])
            score.add(labels, tuned, zero_shot)
            if watch is not None:
                watch(labels, tuned, zero_shot)
    return score.to_dict(split, to_write=to_write)
