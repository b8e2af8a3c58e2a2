"""Accuracy of a run on labelled pictures, by class, with zero-shot beside it.

Pictures stream through a few at a time: what the run's cache knows is read from there, the rest
goes through the image tower, so memory depends on neither their number nor the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.errors import ConfigError, DataError
from edgeladder.core.files import write_json
from edgeladder.runtime.cache.store import ActivationCache, sample_key
from edgeladder.runtime.classifier import Classifier, run_request
from edgeladder.runtime.logits import Activations
from edgeladder.runtime.pictures.dataset import SPLITS, Dataset, Picture, open_data, split
from edgeladder.runtime.pictures.decode import decode_square
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.runtime.scoring import Score

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle

EVALUATION = "evaluation.json"  # in the run's folder: what the report shows
BATCH = 16  # pictures at a time
_UNREADABLE_SHARE = 0.05  # more than this is an error, not a few bad pictures

Progress = Callable[[str, int, int], None]


def evaluate(
    run: Path,
    *,
    data: str | Path | None = None,
    bundle: Bundle | Path | None = None,
    cache: Path | None = None,
    split_name: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Judge a run on labelled pictures.

    Args:
        run: run directory, or a folder with an adapter (then `data` and `bundle` are needed).
        data: pictures; None: what the run trained on, of which the held-out ones are judged.
        bundle: None: the one the run remembers.
        cache: folder of cached activations; None: the run's. Missing ones are computed.
        split_name: train, validation or test; None: test where the pictures have one, all
            pictures of foreign data without splits.
        threads: of onnxruntime; None: all cores.
        progress: called with `evaluate`, pictures done and their number.

    Returns:
        The `evaluate` JSON of the design: `accuracy`, `per_class`, `confusion`, `count`,
        `zero_shot_accuracy`, and `split`, `classes`, `skipped` [{`path`, `reason`}].

    Raises:
        ConfigError: no adapter, bundle or such split.
        DataError: no pictures, unknown labels, or more than 5 % unreadable.
        IntegrityError: the adapter belongs to another bundle.
    """
    run = Path(run)
    request = run_request(run)
    own = data is None or _same(data, request.get("data"))
    with Classifier.open(run, bundle, threads=threads) as classifier:
        where = data if data is not None else request.get("data")
        if where is None:
            raise ConfigError("no pictures were named", where=str(run), remedy="add --data FOLDER")
        dataset = open_data(where)
        pictures, name = _choose(dataset, split_name, request, own=own)
        labels = dataset.labels(pictures, classifier.classes)
        folder = cache if cache is not None else request.get("cache")
        store = _store(classifier, folder, str(request.get("cache_dtype") or "fp16"))
        score, skipped = Score(classifier.classes), []
        for done, (rows, tuned, zero_shot, bad) in enumerate(_judged(classifier, pictures, store)):
            skipped += bad
            if len(rows):
                score.add(labels[rows], tuned, zero_shot)
            if progress is not None:
                progress("evaluate", min((done + 1) * BATCH, len(pictures)), len(pictures))
        if store is not None:
            store.abandon()
    _check_skipped(skipped, len(pictures), str(where))
    result = {**score.to_dict(name), "skipped": skipped}
    if own and split_name is None and (run / "config.yaml").is_file():
        write_json(run / EVALUATION, result)
    return result


def _same(data: str | Path | None, other: str | None) -> bool:
    return data is not None and other is not None and Path(data).resolve() == Path(other).resolve()


def _choose(
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
    if own or dataset.has_splits:
        held_out = split(dataset, request.get("shots"), int(request.get("seed") or 0))[1]
        if held_out:
            return held_out, held_out[0].split or "test"
    return dataset.pictures, "all"


def _store(classifier: Classifier, folder: Any, dtype: str) -> ActivationCache | None:
    """The run's cache of pictures, if it is (still) there."""
    if folder is None or not Path(folder).is_dir():
        return None
    return ActivationCache.open(
        folder, classifier.bundle, "image", "int8" if dtype == "int8" else "fp16"
    )


Judged = tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, str]]]


def _judged(
    classifier: Classifier, pictures: list[Picture], store: ActivationCache | None
) -> Iterator[Judged]:
    """Per batch: rows judged, tuned and zero-shot logits, and the pictures that were skipped."""
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        contents, skipped = _read(batch)
        found = _find(store, contents)
        cached = [k for k in contents if k in found]
        rows, tuned, zero_shot = list(cached), [], []
        if cached and store is not None:
            first, second = _from_cache(classifier, store, np.array([found[k] for k in cached]))
            tuned.append(first)
            zero_shot.append(second)
        squares = []
        for k in [k for k in contents if k not in found]:
            try:
                squares.append(decode_square(contents[k], classifier.bundle.manifest.preprocess))
                rows.append(k)
            except UnreadableError as error:
                skipped.append({"path": batch[k].path, "reason": str(error)})
        if squares:
            for first, second in classifier.judge_squares(np.stack(squares)):
                tuned.append(first)
                zero_shot.append(second)
        empty = np.zeros((0, len(classifier.classes)))
        yield (
            start + np.array(rows, np.int64),
            np.concatenate([empty, *tuned]),
            np.concatenate([empty, *zero_shot]),
            skipped,
        )


def _read(batch: Iterable[Picture]) -> tuple[dict[int, bytes], list[dict[str, str]]]:
    contents: dict[int, bytes] = {}
    skipped = []
    for k, picture in enumerate(batch):
        try:
            contents[k] = picture.read()
        except UnreadableError as error:
            skipped.append({"path": picture.path, "reason": str(error)})
    return contents, skipped


def _find(store: ActivationCache | None, contents: dict[int, bytes]) -> dict[int, int]:
    """Places in the cache of those pictures that it holds."""
    if store is None or not contents:
        return {}
    keys = [sample_key(hashlib.sha256(content).digest()) for content in contents.values()]
    places = store.find(np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1))
    return {k: int(place) for k, place in zip(contents, places, strict=True) if place >= 0}


def _from_cache(
    classifier: Classifier, store: ActivationCache, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    ladder = classifier.bundle.manifest.ladder
    taps = [store.taps(places, group) for group in ladder.groups if group.side == "image"]
    extra = {name: store.pre_embeddings(places) for name in ladder.image_inputs}
    return classifier.judge(Activations(taps, store.embeddings(places), extra))


def _check_skipped(skipped: list[dict[str, str]], count: int, where: str) -> None:
    if len(skipped) > _UNREADABLE_SHARE * count:
        raise DataError(
            f"{len(skipped)} of {count} pictures cannot be read, the first: "
            f"{skipped[0]['path']}: {skipped[0]['reason']}",
            where=where,
            remedy="remove or replace them",
        )
