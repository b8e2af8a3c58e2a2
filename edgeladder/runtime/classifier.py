"""A trained run as a classifier: squares of pixels in, class logits out.

The image tower is opened whole and kept open, its weights mapped from the bundle; pictures pass
through a few at a time. Class names pass through the text tower once, segment by segment.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError
from edgeladder.core.yaml_config import read_yaml
from edgeladder.runtime.adapter import Adapter, load_adapter
from edgeladder.runtime.cache.layout import EMBEDDING, EMBEDDING_PRE, l2_normalize
from edgeladder.runtime.heads.closed_form import with_stored_head
from edgeladder.runtime.ladder_encoder import Encoder
from edgeladder.runtime.logits import Activations, ClassEmbeddings, ClassLogits, softmax
from edgeladder.runtime.pictures.class_names import ClassName
from edgeladder.runtime.pictures.decode import normalize
from edgeladder.runtime.towers.runner import ArraySamples, TowerRunner, TowerSizes
from edgeladder.runtime.towers.tokens import Tokenizer, class_prompts

Array = np.ndarray

BATCH = 4  # pictures in the tower at a time
_TEXT_GROUP = 256  # prompts per opening of the text segments
_TEXT_CHUNK = 64  # classes encoded by the ladder at a time


def run_request(run: Path) -> dict[str, Any]:
    """What a run was asked to do, by its config.yaml; empty for a bare adapter."""
    config = run / "config.yaml"
    values = read_yaml(config) if config.is_file() else {}
    request = values.get("request") if isinstance(values, dict) else None
    return dict(request) if isinstance(request, dict) else {}


def run_bundle(run: Path) -> Path:
    """The bundle a run was trained on, as the run remembers it.

    Raises:
        ConfigError: it remembers none, or none is there any more.
    """
    named = run_request(run).get("bundle")
    for path in (Path(named), run / named) if named else ():
        if path.exists():
            return path
    raise ConfigError(
        f"the run's bundle is not at {named}" if named else "the run names no bundle",
        where=str(run),
        remedy="name it with --bundle",
    )


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

    def __init__(self, bundle: Bundle, adapter: Adapter, *, threads: int | None = None):
        self.bundle, self.adapter = bundle, adapter
        self.classes = adapter.record.classes
        self.threads = threads or len(os.sched_getaffinity(0))
        self.encoder = Encoder(bundle, adapter.parameters, self.threads)
        self.formula = with_stored_head(
            ClassLogits.of(bundle.manifest.model), adapter.record.head, adapter.head_arrays
        )
        self._work = tempfile.TemporaryDirectory(prefix="edgeladder-")
        self.class_embeddings = self._class_embeddings()
        sizes = TowerSizes(batch=BATCH, threads=self.threads, whole=True)
        self._tower = TowerRunner(bundle, "image", sizes, Path(self._work.name))

    @classmethod
    def open(
        cls, run: Path, bundle: Bundle | Path | None = None, *, threads: int | None = None
    ) -> Classifier:
        """Open a run directory (or an adapter's folder) for prediction.

        Raises:
            ConfigError: no adapter, or no bundle.
            IntegrityError: the adapter belongs to another bundle, or a file was changed.
        """
        run = Path(run)
        folder = run.parent if run.is_file() else run
        load_adapter(folder)  # a missing adapter is the clearer error
        opened = open_bundle(folder, bundle)
        return cls(opened, load_adapter(folder, opened), threads=threads)

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

    def logits(self, squares: Array) -> Array:
        """Class logits (n, C) of evaluation views (n, S, S, 3) uint8."""
        rows = [tuned for tuned, _ in self.judge_squares(squares)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.classes)), np.float32)

    def judge_squares(self, squares: Array) -> list[tuple[Array, Array]]:
        """Tuned and zero-shot logits, (n, C) twice per batch, of evaluation views."""
        found: list[tuple[Array, Array]] = []
        samples = ArraySamples(normalize(squares, self.bundle.manifest.preprocess))
        self._tower.run(samples, lambda start, outputs: found.append(self._judge_outputs(outputs)))
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
        record = self.adapter.record
        names, aliases = record.class_names, record.text.get("aliases") or []
        described = [
            ClassName(name, tuple(aliases[k]) if k < len(aliases) else ())
            for k, name in enumerate(names)
        ]
        prompts = class_prompts(described, record.templates or None)
        tokens = Tokenizer.from_bundle(self.bundle).encode([p for ps in prompts for p in ps])
        counts = [len(texts) for texts in prompts]
        sizes = TowerSizes(group=_TEXT_GROUP, batch=BATCH, threads=self.threads)
        runner = TowerRunner(self.bundle, "text", sizes, Path(self._work.name))
        parts: list[dict[str, Array]] = []
        runner.run(ArraySamples(tokens), lambda start, outputs: parts.append(dict(outputs)))
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
            for window in _windows(len(zero_shot), _TEXT_CHUNK)
        ]
        return ClassEmbeddings(zero_shot, np.concatenate(tuned))


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


def top_labels(shares: Sequence[float] | Array, classes: Sequence[str], top: int) -> list[Any]:
    """The `top` most probable labels: [{label, probability}], best first."""
    order = np.argsort(-np.asarray(shares), kind="stable")[:top]
    return [{"label": classes[k], "probability": float(shares[k])} for k in order]
