"""A trained run as a classifier: squares of pixels in, class logits out.

Where memory is ample the image tower is opened whole and kept open, its weights mapped from the
bundle, and pictures pass through a few at a time; else they pass in groups, one segment in memory
at a time. Class names pass through the text tower once, segment by segment, on the CPU. Which it
is, is for the budget to say (`InferenceSizes`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.core.inference import AskedClasses, Label
from edgeladder.core.passing_folder import PassingFolder
from edgeladder.core.provider import ProviderChoice
from edgeladder.runtime.adapter import Adapter, check_bundle, load_adapter
from edgeladder.runtime.adapter_fit import require_fit
from edgeladder.runtime.cache.layout import EMBEDDING, EMBEDDING_PRE, l2_normalize
from edgeladder.runtime.class_encoder import encode_classes, grouped
from edgeladder.runtime.heads.closed_form import head_from, of_classes, with_stored_head
from edgeladder.runtime.kept_classes import keep_classes, kept_classes, kept_classes_path
from edgeladder.runtime.known import Known
from edgeladder.runtime.ladder_encoder import Encoder
from edgeladder.runtime.logits import Activations, ClassEmbeddings, ClassLogits, softmax
from edgeladder.runtime.pictures.decode import EXACT_PIXELS, decode_square, normalize
from edgeladder.runtime.pictures.decode_watch import DecodeWatch
from edgeladder.runtime.run_folder import open_bundle
from edgeladder.runtime.towers.runner import TowerRunner, TowerSizes
from edgeladder.runtime.vocabulary import Vocabulary, asked_classes

if TYPE_CHECKING:
    from edgeladder.core.manifest import PreprocessRecord
    from edgeladder.runtime.pictures.dataset import Picture

Array = np.ndarray

OnBatch = Callable[[float], None]
"""Called with the samples' worth of tower work done since the last call; may raise to stop."""


@dataclass(frozen=True)
class InferenceSizes:
    """How much of a run is in memory at a time; the towers' activations do not depend on it."""

    whole: bool = True  # the image tower: all segments open at once, else one at a time
    batch: int = 4  # pictures or prompts in a tower at a time
    group: int = 32  # streamed: pictures per opening of the segments
    text_group: int = 256  # prompts, of whole classes, per opening of the text segments
    class_chunk: int = 64  # classes encoded by the ladder at a time
    max_pixels: int = EXACT_PIXELS  # of pictures decoded in full
    picture_bytes: int | None = None  # of memory for decoding one; None: no limit
    provider: ProviderChoice = ProviderChoice()  # of the towers
    gpu_limit_bytes: int | None = None  # that it may take on a GPU

    @property
    def at_once(self) -> int:
        """Pictures decoded before the tower runs."""
        return self.batch if self.whole else self.group


@dataclass(frozen=True)
class OpenedRun:
    """A run's adapter on the bundle it was trained on, and what it is asked about."""

    folder: Path
    bundle: Bundle
    adapter: Adapter
    vocabulary: Vocabulary

    @classmethod
    def open(
        cls, run: Path, bundle: Bundle | Path | None = None, classes: str | None = None
    ) -> OpenedRun:
        """Open a run directory, or a folder with an adapter (or one of its two files).

        Args:
            classes: to choose among (`vocabulary.asked_classes`); None: those it was trained on.

        Raises:
            ConfigError: no adapter, no bundle, or no such vocabulary.
            DataError: what the vocabulary is read from cannot be read.
            IntegrityError: the adapter belongs to another bundle, or a file was changed.
        """
        run = Path(run)
        folder = run.parent if run.is_file() else run
        adapter = load_adapter(folder)  # first: a missing adapter is the clearer error
        opened = open_bundle(folder, bundle)
        check_bundle(adapter, opened, where=str(folder))
        record = adapter.record
        vocabulary = Vocabulary.of_run(record)
        if classes is not None:
            vocabulary = asked_classes(classes, record)
        return cls(folder, opened, adapter, vocabulary)

    def formula(self) -> ClassLogits:
        """The logits of the vocabulary, beside what the run's head can say of it."""
        plain = ClassLogits.of(self.bundle.manifest.model)
        stored, asked = self.adapter.record.head, self.vocabulary
        calibration = self.adapter.record.calibration
        temperature, alone = (
            (calibration.temperature, calibration.ladder_temperature) if calibration else (1.0, 1.0)
        )
        if asked.own or stored is None:
            whole = with_stored_head(plain, stored, self.adapter.head_arrays)
            return whole.at(temperature)
        places = [place for place in asked.trained if place is not None]
        if not places:
            return plain.at(alone)  # the other is of a sum that nothing is added to here
        head = of_classes(head_from(self.adapter.head_arrays, stored.rule), places)
        known = [column for column, place in enumerate(asked.trained) if place is not None]
        return replace(
            plain.with_head(head, stored.head_weight, stored.ladder_weight).at(temperature),
            head_columns=None if len(known) == len(asked.classes) else tuple(known),
            ladder_temperature=alone,
        )

    def known(self) -> Known | None:
        """What tells a picture of no trained class; None where names were added to those, or taken.

        The support pictures are of the trained classes: of others they say nothing.
        """
        record = self.adapter.record.known
        if record is None or not self.vocabulary.own:
            return None
        return Known.of(record, self.adapter.known_arrays)

    def asked(self) -> AskedClasses | None:
        """What the answer says of its vocabulary; None where it is the run's own."""
        if self.vocabulary.own:
            return None
        return self.vocabulary.asked(head=self.adapter.record.head is not None)


class Classifier:
    """An adapter on its bundle, ready for pictures.

    Attributes:
        classes: labels in the order of the logits.
        formula: the logits' constants, and the head if there is one.
        known: what tells a picture of no class, if the run has it.
        class_embeddings: of all classes.
    """

    def __init__(
        self,
        run: OpenedRun,
        sizes: InferenceSizes | None = None,
        *,
        threads: int | None = None,
        on_batch: OnBatch | None = None,
        watch: DecodeWatch | None = None,
    ):
        """Encode all classes; the image tower is opened with the first picture.

        Args:
            run: adapter and bundle.
            sizes: None: the image tower whole.
            threads: of onnxruntime; None: all cores.
            on_batch: called between batches of both towers; may raise to stop.
            watch: told which picture is being decoded; pictures that it refuses are unreadable.
        """
        self.run = run
        self.bundle, self.adapter = run.bundle, run.adapter
        self.sizes = sizes or InferenceSizes()
        self.classes = run.vocabulary.classes
        self.threads = threads or len(os.sched_getaffinity(0))
        self._on_batch = on_batch
        self._watch = watch or DecodeWatch()
        self.encoder = Encoder(self.bundle, self.adapter.parameters, self.threads)
        self.formula = run.formula()
        self.known = run.known()
        where, count = str(run.folder), len(self.classes)
        require_fit(self.bundle.manifest, self.formula, self.known, count, where=where)
        self._work = PassingFolder()  # where hidden states wait
        self.class_embeddings = self._classes(on_batch)
        tower = TowerSizes(
            group=self.sizes.group,
            batch=self.sizes.batch,
            threads=self.threads,
            whole=self.sizes.whole,
            provider=self.sizes.provider,
            gpu_limit_bytes=self.sizes.gpu_limit_bytes,
        )
        self._tower = TowerRunner(self.bundle, "image", tower, self._work.path)

    @classmethod
    def open(
        cls,
        run: Path,
        bundle: Bundle | Path | None = None,
        *,
        threads: int | None = None,
        sizes: InferenceSizes | None = None,
        classes: str | None = None,
    ) -> Classifier:
        """Open a run directory (or an adapter's folder) for prediction; raises as `OpenedRun`."""
        return cls(OpenedRun.open(run, bundle, classes), sizes, threads=threads)

    def _classes(self, on_batch: OnBatch | None) -> ClassEmbeddings:
        """Of the run's own classes as they were kept, else through text tower and ladder."""
        prompts, kept = self.run.vocabulary.prompts(), None
        if self.run.vocabulary.own:
            kept = kept_classes_path(self.bundle, self.adapter, prompts)
            found = kept_classes(kept)
            if found is not None and len(found.tuned) == len(self.classes):
                return found
        sizes = self.sizes
        made = encode_classes(
            self.bundle,
            self.encoder,
            prompts,
            TowerSizes(group=sizes.text_group, batch=sizes.batch, threads=self.threads),
            sizes.class_chunk,
            self._work.path,
            on_batch,
        )
        keep_classes(kept, made)
        return made

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free sessions and temporary files."""
        self.encoder.close()
        self._tower.close()
        self._work.close()

    def rest(self) -> None:
        """Close the image tower's sessions; the next picture opens them again."""
        self._tower.close()

    def read(self, picture: Picture) -> bytes:
        """A picture file's bytes, no more than there is memory for.

        Raises:
            UnreadableError: it cannot be read, is too large, or ended workers before.
        """
        self._watch.begins(picture.path)
        return picture.read(self.sizes.picture_bytes)

    def square(self, content: bytes) -> Array:
        """The evaluation view (S, S, 3) uint8 of a picture file's bytes.

        Raises:
            UnreadableError: not a picture, truncated, or too large to decode.
        """
        return decode_square(
            content,
            self.bundle.manifest.preprocess,
            max_pixels=self.sizes.max_pixels,
            max_bytes=self.sizes.picture_bytes,
        )

    def logits(self, squares: Sequence[Array] | Array) -> Array:
        """Class logits (n, C) of evaluation views (n, S, S, 3) uint8."""
        return self.answers(squares)[0]

    def answers(self, squares: Sequence[Array] | Array) -> tuple[Array, Array | None]:
        """Class logits (n, C) of evaluation views (n, S, S, 3) uint8, and how known they are, (n,).

        The latter is None where the run cannot say.
        """
        rows: list[Array] = [np.zeros((0, len(self.classes)), np.float32)]
        scores: list[Array] = [np.zeros(0, np.float32)]

        def judge(given: Activations) -> None:
            rows.append(self.judge(given)[0])
            if self.known is not None:
                scores.append(self.known.scores(given.features()))

        self._each_batch(squares, judge)
        logits = np.concatenate(rows[1:] or rows)
        return logits, None if self.known is None else np.concatenate(scores)

    def embeddings(self, squares: Sequence[Array] | Array) -> Array:
        """The ladder's unit embeddings (n, D) of evaluation views (n, S, S, 3) uint8."""
        rows: list[Array] = []

        def encode(given: Activations) -> None:
            rows.append(self.encoder.encode_image(given.taps, given.embedding, given.extra))

        self._each_batch(squares, encode)
        return np.concatenate(rows)

    def is_unknown(self, score: float | None) -> bool:
        """Whether a picture of this `known` score is probably of none of the classes."""
        return score is not None and self.known is not None and self.known.refuses(score)

    def judge_squares(self, squares: Sequence[Array] | Array) -> list[tuple[Array, Array]]:
        """Tuned and zero-shot logits, (n, C) twice per batch, of evaluation views."""
        found: list[tuple[Array, Array]] = []
        self._each_batch(squares, lambda given: found.append(self.judge(given)))
        return found

    def _each_batch(
        self, squares: Sequence[Array] | Array, judge: Callable[[Activations], None]
    ) -> None:
        """The tower over evaluation views; its activations, batch by batch, to `judge`."""
        self._watch.over()
        self._tower.run(
            _Squares(squares, self.bundle.manifest.preprocess),
            lambda start, outputs: judge(self._activations(outputs)),
            self._on_batch,
        )

    def _activations(self, outputs: dict[str, Array]) -> Activations:
        raw = np.asarray(outputs[EMBEDDING], np.float32)
        extra: dict[str, Array] = {}
        if "image_embedding_pre" in self.bundle.manifest.ladder.image_inputs:
            length = np.linalg.norm(raw, axis=-1, keepdims=True)
            extra["image_embedding_pre"] = np.ascontiguousarray(outputs[EMBEDDING_PRE] / length)
        taps = grouped(self.bundle.manifest, "image", outputs)
        return Activations(taps, l2_normalize(raw), extra)

    def judge(self, given: Activations) -> tuple[Array, Array]:
        """Tuned and zero-shot logits (n, C) of activations as the cache holds them."""
        self._watch.over()
        return self.formula.classify(self.encoder, given, self.class_embeddings)


class _Squares:
    """Pictures as the image tower's samples: normalised only when a batch of them is wanted."""

    def __init__(self, squares: Sequence[Array] | Array, preprocess: PreprocessRecord):
        self.squares = squares
        self.count = len(squares)
        self._preprocess = preprocess

    def read(self, start: int, stop: int) -> Array:
        return normalize(np.stack(list(self.squares[start:stop])), self._preprocess)


def probabilities(logits: Array) -> Array:
    """Softmax over classes, float32."""
    return np.asarray(softmax(logits), np.float32)


def top_labels(shares: Sequence[float] | Array, classes: Sequence[str], top: int) -> list[Label]:
    """The `top` most probable labels, best first."""
    order = np.argsort(-np.asarray(shares), kind="stable")[:top]
    return [Label(label=classes[k], probability=float(shares[k])) for k in order]
