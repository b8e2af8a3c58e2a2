"""A trained run as a classifier: squares of pixels in, class logits out.

Where memory is ample the image tower is opened whole and kept open, its weights mapped from the
bundle, and pictures pass through a few at a time; else they pass in groups, one segment in memory
at a time. Class names pass through the text tower once, segment by segment. Which it is, is for
the budget to say (`InferenceSizes`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError
from edgeladder.core.files import read_json
from edgeladder.core.inference import Label
from edgeladder.runtime.adapter import Adapter, check_bundle, load_adapter
from edgeladder.runtime.cache.layout import EMBEDDING, EMBEDDING_PRE, l2_normalize
from edgeladder.runtime.heads.closed_form import with_stored_head
from edgeladder.runtime.ladder_encoder import Encoder
from edgeladder.runtime.logits import Activations, ClassEmbeddings, ClassLogits, softmax
from edgeladder.runtime.pictures.class_names import ClassName
from edgeladder.runtime.pictures.decode import EXACT_PIXELS, decode_square, normalize
from edgeladder.runtime.towers.runner import ArraySamples, TowerRunner, TowerSizes
from edgeladder.runtime.towers.tokens import Tokenizer, class_prompts

if TYPE_CHECKING:
    from edgeladder.core.manifest import PreprocessRecord

Array = np.ndarray

_TEXT_GROUP = 256  # prompts per opening of the text segments

OnBatch = Callable[[float], None]
"""Called with the samples' worth of tower work done since the last call; may raise to stop."""


@dataclass(frozen=True)
class InferenceSizes:
    """How much of a run is in memory at a time; the towers' activations do not depend on it."""

    whole: bool = True  # the image tower: all segments open at once, else one at a time
    batch: int = 4  # pictures or prompts in a tower at a time
    group: int = 32  # streamed: pictures per opening of the segments
    class_chunk: int = 64  # classes encoded by the ladder at a time
    max_pixels: int = EXACT_PIXELS  # of pictures decoded in full
    picture_bytes: int | None = None  # of memory for decoding one; None: no limit

    @property
    def at_once(self) -> int:
        """Pictures decoded before the tower runs."""
        return self.batch if self.whole else self.group


@dataclass(frozen=True)
class OpenedRun:
    """A run's adapter on the bundle it was trained on."""

    folder: Path
    bundle: Bundle
    adapter: Adapter

    @classmethod
    def open(cls, run: Path, bundle: Bundle | Path | None = None) -> OpenedRun:
        """Open a run directory, or a folder with an adapter (or one of its two files).

        Raises:
            ConfigError: no adapter, or no bundle.
            IntegrityError: the adapter belongs to another bundle, or a file was changed.
        """
        run = Path(run)
        folder = run.parent if run.is_file() else run
        adapter = load_adapter(folder)  # first: a missing adapter is the clearer error
        opened = open_bundle(folder, bundle)
        check_bundle(adapter, opened, where=str(folder))
        return cls(folder, opened, adapter)

    def prompts(self) -> list[list[str]]:
        """For each class its name and aliases in every template."""
        record = self.adapter.record
        names, aliases = record.class_names, record.text.get("aliases") or []
        described = [
            ClassName(name, tuple(aliases[k]) if k < len(aliases) else ())
            for k, name in enumerate(names)
        ]
        return class_prompts(described, record.templates or None)


def run_request(run: Path) -> dict[str, Any]:
    """What a run was asked to do, by its config.yaml; empty for a bare adapter."""
    from edgeladder.core.yaml_text import read_yaml  # a prediction does without

    config = run / "config.yaml"
    values = read_yaml(config) if config.is_file() else {}
    request = values.get("request") if isinstance(values, dict) else None
    return dict(request) if isinstance(request, dict) else {}


def run_bundle(run: Path) -> Path:
    """The bundle a run was trained on, as the run remembers it.

    Raises:
        ConfigError: it remembers none, or none is there any more.
    """
    remembered = _environment_bundle(run)
    if remembered is not None:
        return remembered
    named = run_request(run).get("bundle")
    for path in (Path(named), run / named) if named else ():
        if path.exists():
            return path
    raise ConfigError(
        f"the run's bundle is not at {named}" if named else "the run names no bundle",
        where=str(run),
        remedy="name it with --bundle",
    )


def _environment_bundle(run: Path) -> Path | None:
    """The bundle by environment.json, which holds the whole path and needs no YAML to read."""
    try:
        named = read_json(run / "environment.json")["bundle"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(named) if isinstance(named, str) and Path(named).exists() else None


def open_bundle(run: Path, bundle: Bundle | Path | None) -> Bundle:
    """The bundle given, or the run's own."""
    if isinstance(bundle, Bundle):
        return bundle
    return Bundle.open(bundle if bundle is not None else run_bundle(run))


class Classifier:
    """An adapter on its bundle, ready for pictures.

    Attributes:
        classes: labels in the order of the logits.
        formula: the logits' constants, and the head if there is one.
        class_embeddings: of all classes.
    """

    def __init__(
        self,
        run: OpenedRun,
        sizes: InferenceSizes | None = None,
        *,
        threads: int | None = None,
        on_batch: OnBatch | None = None,
    ):
        """Encode all classes; the image tower is opened with the first picture.

        Args:
            run: adapter and bundle.
            sizes: None: the image tower whole.
            threads: of onnxruntime; None: all cores.
            on_batch: called between batches of both towers; may raise to stop.
        """
        self.run = run
        self.bundle, self.adapter = run.bundle, run.adapter
        self.sizes = sizes or InferenceSizes()
        self.classes = self.adapter.record.classes
        self.threads = threads or len(os.sched_getaffinity(0))
        self._on_batch = on_batch
        self.encoder = Encoder(self.bundle, self.adapter.parameters, self.threads)
        self.formula = with_stored_head(
            ClassLogits.of(self.bundle.manifest.model),
            self.adapter.record.head,
            self.adapter.head_arrays,
        )
        self._work = tempfile.TemporaryDirectory(prefix="edgeladder-", dir=_work_folder())
        self.class_embeddings = self._class_embeddings()
        tower = TowerSizes(
            group=self.sizes.group,
            batch=self.sizes.batch,
            threads=self.threads,
            whole=self.sizes.whole,
        )
        self._tower = TowerRunner(self.bundle, "image", tower, Path(self._work.name))

    @classmethod
    def open(
        cls,
        run: Path,
        bundle: Bundle | Path | None = None,
        *,
        threads: int | None = None,
        sizes: InferenceSizes | None = None,
    ) -> Classifier:
        """Open a run directory (or an adapter's folder) for prediction.

        Raises:
            ConfigError: no adapter, or no bundle.
            IntegrityError: the adapter belongs to another bundle, or a file was changed.
        """
        return cls(OpenedRun.open(run, bundle), sizes, threads=threads)

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free sessions and temporary files."""
        self.encoder.close()
        self._tower.close()
        self._work.cleanup()

    def rest(self) -> None:
        """Close the image tower's sessions; the next picture opens them again."""
        self._tower.close()

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
        rows = [tuned for tuned, _ in self.judge_squares(squares)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def judge_squares(self, squares: Sequence[Array] | Array) -> list[tuple[Array, Array]]:
        """Tuned and zero-shot logits, (n, C) twice per batch, of evaluation views."""
        found: list[tuple[Array, Array]] = []
        samples = _Squares(squares, self.bundle.manifest.preprocess)
        self._tower.run(
            samples,
            lambda start, outputs: found.append(self._judge_outputs(outputs)),
            self._on_batch,
        )
        return found

    def _judge_outputs(self, outputs: dict[str, Array]) -> tuple[Array, Array]:
        raw = np.asarray(outputs[EMBEDDING], np.float32)
        extra: dict[str, Array] = {}
        if "image_embedding_pre" in self.bundle.manifest.ladder.image_inputs:
            length = np.linalg.norm(raw, axis=-1, keepdims=True)
            extra["image_embedding_pre"] = np.ascontiguousarray(outputs[EMBEDDING_PRE] / length)
        return self.judge(Activations(self._grouped("image", outputs), l2_normalize(raw), extra))

    def judge(self, given: Activations) -> tuple[Array, Array]:
        """Tuned and zero-shot logits (n, C) of activations as the cache holds them."""
        return self.formula.classify(self.encoder, given, self.class_embeddings)

    def _grouped(self, side: str, outputs: dict[str, Array]) -> list[Array]:
        """Taps by name (n, T, W) -> one (L, T, n, W) per tap group."""
        tower = getattr(self.bundle.manifest, side)
        return [
            np.ascontiguousarray(
                np.stack([outputs[tower.taps[k].name].swapaxes(0, 1) for k in group.taps])
            )
            for group in self.bundle.manifest.ladder.groups
            if group.side == side
        ]

    def _class_embeddings(self) -> ClassEmbeddings:
        """Prompts through the text tower, averaged over templates."""
        prompts = self.run.prompts()
        tokens = Tokenizer.from_bundle(self.bundle).encode([p for ps in prompts for p in ps])
        counts = [len(texts) for texts in prompts]
        sizes = TowerSizes(group=_TEXT_GROUP, batch=self.sizes.batch, threads=self.threads)
        runner = TowerRunner(self.bundle, "text", sizes, Path(self._work.name))
        parts: list[dict[str, Array]] = []
        runner.run(
            ArraySamples(tokens),
            lambda start, outputs: parts.append(dict(outputs)),
            self._on_batch,
        )
        runner.close()
        outputs: dict[str, Array] = {}
        for name in parts[0]:
            whole = np.concatenate([part[name] for part in parts])
            if name == EMBEDDING:
                whole = l2_normalize(np.asarray(whole, np.float32))
            outputs[name] = _means(whole, counts)
        zero_shot = l2_normalize(outputs[EMBEDDING])
        taps = self._grouped("text", outputs)
        tuned = [
            self.encoder.encode_text(
                [np.ascontiguousarray(g[:, :, window]) for g in taps], zero_shot[window]
            )
            for window in _windows(len(zero_shot), self.sizes.class_chunk)
        ]
        return ClassEmbeddings(zero_shot, np.concatenate(tuned))


class _Squares:
    """Pictures as the image tower's samples: normalised only when a batch of them is wanted."""

    def __init__(self, squares: Sequence[Array] | Array, preprocess: PreprocessRecord):
        self.squares = squares
        self.count = len(squares)
        self._preprocess = preprocess

    def read(self, start: int, stop: int) -> Array:
        return normalize(np.stack(list(self.squares[start:stop])), self._preprocess)


def _work_folder() -> str | None:
    """Where hidden states wait: on a disk, because `/tmp` is memory on many small boxes."""
    on_disk = "/var/tmp"  # noqa: S108 - a folder of our own is made in it
    return None if "TMPDIR" in os.environ or not os.access(on_disk, os.W_OK) else on_disk


def _means(values: Array, counts: Sequence[int]) -> Array:
    """Means over each class's prompts: (sum of counts, ..) -> (C, ..) float32."""
    ends = np.cumsum(counts)
    return np.stack(
        [
            np.asarray(values[end - count : end], np.float32).mean(axis=0)
            for count, end in zip(counts, ends, strict=True)
        ]
    )


def _windows(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def probabilities(logits: Array) -> Array:
    """Softmax over classes, float32."""
    return np.asarray(softmax(logits), np.float32)


def top_labels(shares: Sequence[float] | Array, classes: Sequence[str], top: int) -> list[Label]:
    """The `top` most probable labels, best first."""
    order = np.argsort(-np.asarray(shares), kind="stable")[:top]
    return [Label(label=classes[k], probability=float(shares[k])) for k in order]
