"""Class logits: the one formula of zero-shot, ladder and head.

    similarity(z, t) = scale * z t^T + bias
    zero-shot        = similarity(CLIP's picture embedding, CLIP's class embedding)
    tuned            = similarity(the ladder's picture embedding, the ladder's class embedding)
    logits           = (ladder_weight * tuned + head_weight * head(features, zero-shot)) / T

T, the temperature, brings the sum back to log-odds: `softmax(logits)` are probabilities that hold
(`calibration`). It moves no picture to another class.

A head knows the classes that it was fitted on and no others. Where names are asked about that
training never saw, it orders its own classes among themselves and says nothing of the rest: with
K its classes and `both` the last line above, over T too,

    logits_c = tuned_c                                         for a class c outside K
    logits_k = both_k - max over K of both + max over K of tuned    for k in K

so whether a picture shows a class of K at all is left to the ladder, which embeds all names alike.
Added as it is, a head of weight 32 would outvote every name that it does not know.

`deploy_graph` writes the same formula as ONNX operators. Nothing heavier than numpy is imported
here, because the training and evaluation workers count inside the budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from edgeladder.core.manifest import ModelRecord
    from edgeladder.runtime.engine.protocol import Rows, StepInputs

Array = np.ndarray

_CLASS_WINDOW = 256  # classes whose stored embeddings are read at a time


@dataclass(frozen=True)
class Activations:
    """What is cached of n pictures, as ladder and head read it."""

    taps: list[Array]  # one (L, T, n, W) per image tap group
    embedding: Array  # (n, D) at unit length
    extra: dict[str, Array] = field(default_factory=dict)  # the ladder's further inputs, (n, W)

    def features(self) -> list[Array]:
        """What a head reads: every tap flattened to (n, T * W), then the embeddings.

        The embedding before CLIP's projection, where the bundle has one, comes before the final
        one.
        """
        flat = [
            np.ascontiguousarray(tap.transpose(1, 0, 2)).reshape(tap.shape[1], -1)
            for group in self.taps
            for tap in group
        ]
        return [*flat, *self.extra.values(), self.embedding]


@dataclass(frozen=True)
class ClassEmbeddings:
    """Every class as CLIP and as the ladder embed it, (C, D) at unit length each."""

    zero_shot: Rows  # an array, or read from the cache a window at a time
    tuned: Array


class PictureEncoder(Protocol):
    """A ladder that encodes pictures: an engine, or `ladder_encoder.Encoder`."""

    def encode_image(self, taps: list[Array], embedding: Array, extra: dict[str, Array]) -> Array:
        """Tuned embeddings (n, D), L2-normalised."""


class ClassEncoder(Protocol):
    """A ladder that encodes classes."""

    def encode_text(self, taps: list[Array], embedding: Array) -> Array:
        """Tuned class embeddings (n, D), L2-normalised."""


class Head(Protocol):
    """A fitted closed-form head, whatever its kind (`heads.closed_form`)."""

    def logits(self, features: Sequence[Array], zero_shot: Array) -> Array:
        """(n, C) from `Activations.features` and zero-shot logits (n, C)."""


@dataclass(frozen=True)
class ClassLogits:
    """The formula with its constants.

    Attributes:
        scale: CLIP's logit scale, the inverse of its temperature.
        bias: SigLIP's; 0 for CLIP.
        head: a closed-form head that counts beside the ladder.
        head_weight, ladder_weight: of the two; a ladder of weight 0 leaves the head alone.
        head_columns: places of the head's classes among those asked about, in its order; None:
            they are the same.
        temperature: T, above 0; of a ladder alone for all names, of a sum for the head's.
        ladder_temperature: of the ladder alone for the names that the head does not know.
    """

    scale: float
    bias: float = 0.0
    head: Head | None = None
    head_weight: float = 1.0
    ladder_weight: float = 1.0
    head_columns: tuple[int, ...] | None = None
    temperature: float = 1.0
    ladder_temperature: float = 1.0

    @classmethod
    def of(cls, model: ModelRecord) -> ClassLogits:
        """A model's, without a head."""
        return cls(float(model.logit_scale), float(model.logit_bias))

    def with_head(self, head: Head, head_weight: float, ladder_weight: float = 1.0) -> ClassLogits:
        """The same beside a head."""
        return replace(self, head=head, head_weight=head_weight, ladder_weight=ladder_weight)

    def at(self, temperature: float) -> ClassLogits:
        """The same, brought to scale by a temperature."""
        return replace(self, temperature=temperature)

    def similarity(self, pictures: Array, classes: Rows) -> Array:
        """Logits (n, C) of picture embeddings (n, D) against class embeddings (C, D)."""
        if isinstance(classes, np.ndarray):
            return np.asarray(self.scale * (pictures @ classes.T) + self.bias)
        logits = np.empty((len(pictures), len(classes)), np.float32)
        for start in range(0, len(classes), _CLASS_WINDOW):
            window = slice(start, start + _CLASS_WINDOW)
            logits[:, window] = self.similarity(pictures, classes[window])
        return logits

    def tuned(self, encoder: PictureEncoder, given: Activations, classes: Array) -> Array:
        """The ladder's own logits (n, C) against tuned class embeddings (C, D)."""
        encoded = encoder.encode_image(given.taps, given.embedding, given.extra)
        return self.similarity(encoded, classes)

    def classify(
        self, encoder: PictureEncoder, given: Activations, classes: ClassEmbeddings
    ) -> tuple[Array, Array]:
        """Logits of the whole classifier, head included, and zero-shot's: (n, C) each."""
        tuned = self.tuned(encoder, given, classes.tuned)
        zero_shot = self.similarity(given.embedding, classes.zero_shot)
        if self.head is None:
            return tuned / self.temperature, zero_shot
        return self.joined(self.head, tuned, zero_shot, given), zero_shot

    def joined(self, head: Head, tuned: Array, zero_shot: Array, given: Activations) -> Array:
        """Ladder and head together, (n, C), from the logits of both embeddings, (n, C) each."""
        if self.head_columns is None:
            beside = head.logits(given.features(), zero_shot)
            return np.asarray(
                (self.ladder_weight * tuned + self.head_weight * beside) / self.temperature
            )
        own = list(self.head_columns)
        beside = head.logits(given.features(), zero_shot[:, own])
        both = (self.ladder_weight * tuned[:, own] + self.head_weight * beside) / self.temperature
        alone = tuned / self.ladder_temperature
        best = alone[:, own].max(axis=1, keepdims=True)
        logits = np.array(alone, np.result_type(alone, both))
        logits[:, own] = both - both.max(axis=1, keepdims=True) + best
        return logits


def softmax(logits: Array) -> Array:
    """Probabilities over the last axis, the classes."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def windows(
    inputs: StepInputs, size: int, *, embedding_only: bool = False
) -> Iterator[tuple[slice, Activations]]:
    """A batch's pictures, `size` at a time, in order; taps are read unless `embedding_only`."""
    count = len(inputs.labels)
    for start in range(0, count, size):
        window = slice(start, min(start + size, count))
        embedding = inputs.image_embedding[window]
        if embedding_only:
            yield window, Activations([], embedding)
            continue
        extra = {name: rows[window] for name, rows in inputs.image_extra.items()}
        taps = inputs.image_taps(window.start, window.stop)
        yield window, Activations(taps, embedding, extra)


def class_embeddings(encoder: ClassEncoder, inputs: StepInputs, chunk: int) -> ClassEmbeddings:
    """Every class of a batch's inputs, encoded `chunk` at a time."""
    given = inputs.text_embedding
    tuned = np.empty(given.shape, np.float32)
    for start in range(0, len(given), chunk):
        window = slice(start, min(start + chunk, len(given)))
        tuned[window] = encoder.encode_text(
            inputs.text_taps(window.start, window.stop), given[window]
        )
    return ClassEmbeddings(given, tuned)
