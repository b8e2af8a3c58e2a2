"""Accuracy counted as pictures pass by: memory grows with the classes, not with the pictures.

Nothing heavier than numpy is imported here, because the evaluation worker counts inside the
budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from edgeladder.runtime.engine.protocol import Engine, StepInputs

Array = np.ndarray


class Term(Protocol):
    """A fitted closed-form head, as a term beside the ladder."""

    def logits(self, features: Sequence[Array], zero_shot: Array) -> Array:
        """(n, C) from features per tap, the final embedding last, and zero-shot logits."""


class Score:
    """Confusion counts of the tuned classifier and hits of zero-shot."""

    def __init__(self, classes: Sequence[str]):
        self.classes = list(classes)
        size = len(self.classes)
        self.confusion = np.zeros((size, size), np.int64)  # true, predicted
        self.zero_shot_hits = np.zeros(size, np.int64)

    def add(self, labels: Array, tuned: Array, zero_shot: Array) -> None:
        """Count one batch: labels (n,), logits (n, C) twice."""
        np.add.at(self.confusion, (labels, tuned.argmax(axis=1)), 1)
        np.add.at(self.zero_shot_hits, labels[zero_shot.argmax(axis=1) == labels], 1)

    def to_dict(self, split: str) -> dict[str, Any]:
        """The `evaluate` JSON; classes without pictures have accuracy None."""
        totals = self.confusion.sum(axis=1)
        hits = np.diag(self.confusion)
        count = int(totals.sum())

        def share(part: int, whole: int) -> float | None:
            return float(part / whole) if whole else None

        return {
            "accuracy": share(int(hits.sum()), count),
            "zero_shot_accuracy": share(int(self.zero_shot_hits.sum()), count),
            "count": count,
            "split": split,
            "classes": self.classes,
            "per_class": {
                name: {
                    "count": int(totals[k]),
                    "accuracy": share(int(hits[k]), int(totals[k])),
                    "zero_shot_accuracy": share(int(self.zero_shot_hits[k]), int(totals[k])),
                }
                for k, name in enumerate(self.classes)
            },
            "confusion": self.confusion.tolist(),
        }


def class_embeddings(engine: Engine, inputs: StepInputs, chunk: int) -> Array:
    """Tuned class embeddings (C, D), `chunk` classes at a time."""
    count = len(inputs.text_embedding)
    return np.concatenate(
        [
            engine.encode_text(
                inputs.text_taps(start, min(start + chunk, count)),
                inputs.text_embedding[start : start + chunk],
            )
            for start in range(0, count, chunk)
        ]
    )


def head_features(
    taps: Sequence[Array], embedding: Array, extra: Mapping[str, Array] | None = None
) -> list[Array]:
    """What a head reads: every tap flattened to (n, T * W), then the final embedding (n, D).

    Args:
        taps: one (L, T, n, W) per tap group.
        embedding: (n, D).
        extra: the ladder's further inputs (n, W): the embedding before the projection, which
            comes before the final one.
    """
    flat = [
        np.ascontiguousarray(tap.transpose(1, 0, 2)).reshape(tap.shape[1], -1)
        for group in taps
        for tap in group
    ]
    return [*flat, *(extra or {}).values(), embedding]


def evaluate_cached(
    engine: Engine,
    model: Any,
    batches: Iterable[StepInputs],
    classes: Sequence[str],
    *,
    split: str = "test",
    chunk: int = 64,
    head: Term | None = None,
    eta: float = 1.0,
    ladder: float = 1.0,
) -> dict[str, Any]:
    """Accuracy over cached pictures.

    Args:
        engine: with the trained parameters.
        model: the manifest's `model` record: `logit_scale` and `logit_bias` are read.
        batches: windows of pictures, all against the same classes.
        classes: folder names, in label order.
        split: named in the result.
        chunk: pictures or classes encoded at a time.
        head: a closed-form head added as a term, `logits = ladder * tuned + eta * head`.
        eta: its weight.
        ladder: the tuned logits' weight: 0 for a head alone.

    Returns:
        The `evaluate` JSON of the design: `accuracy`, `zero_shot_accuracy`, `count`, `split`,
        `classes`, `per_class`, `confusion`; accuracies None where there are no pictures.
    """
    score = Score(classes)
    scale, bias = float(model.logit_scale), float(getattr(model, "logit_bias", 0.0))
    text: Array | None = None
    for inputs in batches:
        if text is None:
            text = class_embeddings(engine, inputs, chunk)
        for start in range(0, len(inputs.labels), chunk):
            stop = min(start + chunk, len(inputs.labels))
            taps = inputs.image_taps(start, stop)
            embedding = inputs.image_embedding[start:stop]
            extra = {name: rows[start:stop] for name, rows in inputs.image_extra.items()}
            tuned = scale * (engine.encode_image(taps, embedding, extra) @ text.T) + bias
            zero_shot = scale * (embedding @ inputs.text_embedding.T) + bias
            if head is not None:
                tuned = ladder * tuned + eta * head.logits(
                    head_features(taps, embedding, extra), zero_shot
                )
            score.add(np.asarray(inputs.labels[start:stop]), tuned, zero_shot)
    return score.to_dict(split)
