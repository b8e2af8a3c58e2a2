"""Accuracy of a run on labelled pictures, by class, with zero-shot beside it.

Pictures stream through a few at a time: what the run's cache knows is read from there, the rest
goes through the image tower, so memory depends on neither their number nor the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.errors import ConfigError, DataError
from edgeladder.core.files import real_path, write_json
from edgeladder.core.inference import Evaluation, Skipped
from edgeladder.core.records import from_json, to_json
from edgeladder.runtime.cache.store import ActivationCache, sample_key
from edgeladder.runtime.classifier import Classifier, InferenceSizes
from edgeladder.runtime.logits import Activations
from edgeladder.runtime.pictures.dataset import SPLITS, Dataset, Picture, open_data, split
from edgeladder.runtime.pictures.reduction import large_scale
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.runtime.run_folder import run_request
from edgeladder.runtime.scoring import Score

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle

EVALUATION = "evaluation.json"  # in the run's folder: what the report shows
_UNREADABLE_SHARE = 0.05  # more than this is an error, not a few bad pictures

Progress = Callable[[int, int], None]  # pictures done, and their number


@dataclass(frozen=True)
class Judged:
    """What a run is judged on.

    Attributes:
        data: pictures; None: what the run trained on, of which the held-out ones are judged.
        cache: folder of cached activations; None: the run's. Missing ones are computed.
        split: train, validation or test; None: test where the pictures have one, all pictures of
            foreign data without splits.
    """

    data: str | Path | None = None
    cache: str | Path | None = None
    split: str | None = None


def evaluate(
    run: Path,
    judged: Judged | None = None,
    *,
    bundle: Bundle | Path | None = None,
    threads: int | None = None,
    sizes: InferenceSizes | None = None,
    progress: Progress | None = None,
    classes: str | None = None,
) -> Evaluation:
    """Judge a run on labelled pictures, in this process.

    Args:
        run: run directory, or a folder with an adapter (then data and bundle are needed).
        judged: on what; None: on the held-out pictures of what it trained on.
        bundle: None: the one the run remembers.
        threads: of onnxruntime; None: all cores.
        sizes: None: the image tower whole.
        progress: told of pictures done.
        classes: to choose among (`vocabulary.asked_classes`), which every picture's label must be
            one of; None: those it was trained on.

    Returns:
        Accuracies by class and together, zero-shot's beside them, and what was skipped. Those of
        the run's own held-out pictures among its own classes are kept in its folder for the report.

    Raises:
        ConfigError: no adapter, bundle or such split.
        DataError: no pictures, unknown labels, or more than 5 % unreadable.
        IntegrityError: the adapter belongs to another bundle.
    """
    with Classifier.open(run, bundle, threads=threads, sizes=sizes, classes=classes) as classifier:
        return judge_pictures(classifier, judged or Judged(), progress)


def judge_pictures(
    classifier: Classifier, judged: Judged, progress: Progress | None = None
) -> Evaluation:
    """`evaluate` with a classifier that is open."""
    run = classifier.run.folder
    request = run_request(run)
    own = judged.data is None or same_place(judged.data, request.get("data"))
    where = judged.data if judged.data is not None else request.get("data")
    if where is None:
        raise ConfigError("no pictures were named", where=str(run), remedy="add --data FOLDER")
    dataset = open_data(where)
    pictures, name = choose_pictures(dataset, judged.split, request, own=own)
    labels = dataset.labels(pictures, classifier.classes)
    folder = judged.cache if judged.cache is not None else request.get("cache")
    store = open_store(classifier, folder, str(request.get("cache_dtype") or "fp16"))
    score, skipped = Score(classifier.classes), []
    for done, batch in judged_batches(classifier, pictures, store):
        skipped += batch.skipped
        for rows, tuned, zero_shot in batch.logits:
            score.add(labels[rows], tuned, zero_shot)
        if progress is not None:
            progress(done, len(pictures))
    if store is not None:
        store.abandon()
    check_skipped(skipped, len(pictures), str(where))
    found = from_json(Evaluation, score.to_dict(name))
    found = replace(found, skipped=skipped, asked=classifier.run.asked())
    if (
        own
        and classifier.run.vocabulary.own
        and judged.split is None
        and (run / "config.yaml").is_file()
    ):
        write_json(run / EVALUATION, to_json(found))
    return found


def same_place(data: str | Path | None, other: str | None) -> bool:
    """Whether two paths of pictures are one."""
    return data is not None and other is not None and real_path(data) == real_path(other)


def choose_pictures(
    dataset: Dataset, wanted: str | None, request: dict[str, Any], *, own: bool
) -> tuple[list[Picture], str]:
    """The pictures to judge and the name of their split."""
    if wanted is not None:
        side = SPLITS.get(wanted.lower())
        if side is None:
            raise ConfigError(f"unknown split {wanted!r}", remedy="use train, validation or test")
        pictures = [p for p in dataset.pictures if p.split == side]
        if not dataset.has_splits and side != "validation":
            pictures = split(dataset, None, 0)[side == "test"]
        if not pictures:
            raise DataError(f"there are no {side} pictures", where=dataset.source)
        return pictures, side
    for side in ("test", "validation"):  # data that are only judged need no train/
        held_out = [p for p in dataset.pictures if p.split == side]
        if held_out:
            return held_out, side
    if own and not dataset.has_splits:
        held_out = split(dataset, request.get("shots"), int(request.get("seed") or 0))[1]
        if held_out:
            return held_out, "test"
    return dataset.pictures, "all"


def open_store(classifier: Classifier, folder: Any, dtype: str) -> ActivationCache | None:
    """The run's cache of pictures, if it is (still) there."""
    if folder is None or not Path(folder).is_dir():
        return None
    return ActivationCache.open(
        folder,
        classifier.bundle,
        "image",
        "int8" if dtype == "int8" else "fp16",
        arithmetic=classifier.sizes.provider.arithmetic,
    )


@dataclass(frozen=True)
class JudgedBatch:
    """A few pictures, judged: rows among all pictures, tuned and zero-shot logits of each part."""

    logits: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    skipped: list[Skipped]


def judged_batches(
    classifier: Classifier, pictures: list[Picture], store: ActivationCache | None
) -> Iterator[tuple[int, JudgedBatch]]:
    """Pictures done so far, and those done last; `sizes.at_once` of them are in memory."""
    size = classifier.sizes.at_once
    for start in range(0, len(pictures), size):
        batch = _judge_batch(classifier, pictures, range(start, start + size), store)
        yield min(start + size, len(pictures)), batch


def _judge_batch(
    classifier: Classifier, pictures: list[Picture], rows: range, store: ActivationCache | None
) -> JudgedBatch:
    places: dict[int, int] = {}  # row -> place in the cache
    squares: dict[int, np.ndarray] = {}
    batch = JudgedBatch([], [])
    for row in rows[: len(pictures) - rows.start]:
        try:
            content = classifier.read(pictures[row])
            place = _find(store, content, classifier.bundle.manifest.preprocess.size)
            if place is not None:
                places[row] = place
            else:
                squares[row] = classifier.square(content)
        except UnreadableError as error:
            batch.skipped.append(Skipped(path=pictures[row].path, reason=str(error)))
    cached, size = list(places), classifier.sizes.batch
    for start in range(0, len(cached), size):
        part = np.array(cached[start : start + size])
        assert store is not None
        found = _from_cache(classifier, store, np.array([places[row] for row in part]))
        batch.logits.append((part, *found))
    if squares:
        parts = classifier.judge_squares(list(squares.values()))
        tuned, zero_shot = (np.concatenate(side) for side in zip(*parts, strict=True))
        batch.logits.append((np.array(list(squares)), tuned, zero_shot))
    return batch


def _find(store: ActivationCache | None, content: bytes, side: int) -> int | None:
    """A picture's place in the cache; None where it is not there."""
    if store is None:
        return None
    digest = hashlib.sha256(content).digest()
    for scale in dict.fromkeys((1, large_scale(content, side))):
        key = sample_key(digest, scale=scale)
        place = int(store.find(np.frombuffer(key, np.uint8)[None])[0])
        if place >= 0:
            return place
    return None


def _from_cache(
    classifier: Classifier, store: ActivationCache, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    ladder = classifier.bundle.manifest.ladder
    taps = [store.taps(places, group) for group in ladder.groups if group.side == "image"]
    extra = {name: store.pre_embeddings(places) for name in ladder.image_inputs}
    return classifier.judge(Activations(taps, store.embeddings(places), extra))


def check_skipped(skipped: list[Skipped], count: int, where: str) -> None:
    """Refuse where more than a few pictures cannot be read. Raises DataError."""
    if len(skipped) > _UNREADABLE_SHARE * count:
        raise DataError(
            f"{len(skipped)} of {count} pictures cannot be read, the first: "
            f"{skipped[0].path}: {skipped[0].reason}",
            where=where,
            remedy="remove or replace them",
        )
