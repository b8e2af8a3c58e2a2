"""What a run says of each labelled picture, for two runs to be held against each other.

The pictures may be another run's held-out ones, of classes that this run never saw.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.comparison import Judgement, Judgements
from edgeladder.core.errors import ConfigError, DataError
from edgeladder.runtime.cache.selection import Selection
from edgeladder.runtime.cache.store import sample_key
from edgeladder.runtime.classifier import probabilities
from edgeladder.runtime.evaluation import (
    Judged,
    check_skipped,
    choose_pictures,
    judged_batches,
    open_store,
    same_place,
)
from edgeladder.runtime.pictures.dataset import open_data
from edgeladder.runtime.pictures.reduction import SCALES
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.runtime.run_folder import run_request

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeladder.runtime.classifier import Classifier
    from edgeladder.runtime.pictures.dataset import Picture

    Progress = Callable[[int, int], None]  # pictures done, and their number

SELECTION = "selection.safetensors"  # in a run's folder: what it was trained on


def judge_each(
    classifier: Classifier, judged: Judged, like: Path, progress: Progress | None = None
) -> Judgements:
    """Label every picture that `like` holds out, or those that `judged` names.

    Args:
        classifier: of the run that judges.
        judged: pictures, cache and split; what it leaves open is as `like` has it.
        like: the run whose pictures they are.

    Raises:
        ConfigError: neither names pictures.
        DataError: none there, or more than 5 % cannot be read.
    """
    request = run_request(like)
    where = judged.data if judged.data is not None else request.get("data")
    if where is None:
        raise ConfigError("no pictures were named", where=str(like), remedy="add --data FOLDER")
    own = judged.data is None or same_place(judged.data, request.get("data"))
    pictures, name = choose_pictures(open_data(where), judged.split, request, own=own)
    asked = run_request(classifier.run.folder)
    folder = judged.cache if judged.cache is not None else asked.get("cache")
    store = open_store(classifier, folder, str(asked.get("cache_dtype") or "fp16"))
    labels, chances = np.full(len(pictures), -1), np.zeros(len(pictures))
    skipped = []
    for done, batch in judged_batches(classifier, pictures, store):
        skipped += batch.skipped
        for rows, tuned, _ in batch.logits:
            shares = probabilities(tuned)
            labels[rows], chances[rows] = shares.argmax(axis=1), shares.max(axis=1)
        if progress is not None:
            progress(done, len(pictures))
    if store is not None:
        store.abandon()
    check_skipped(skipped, len(pictures), str(where))
    trained = _trained_on(classifier.run.folder)
    rows = np.flatnonzero(labels >= 0)
    found = []
    for row in rows.tolist():
        picture, content = pictures[row], _content(pictures[row])
        found.append(
            Judgement(
                path=picture.path,
                content=content.hex(),
                label=picture.label,
                predicted=classifier.classes[int(labels[row])],
                probability=round(float(chances[row]), 6),
                trained_on=any(sample_key(content, scale=scale) in trained for scale in SCALES),
            )
        )
    return Judgements(
        classes=list(classifier.classes),
        pictures=found,
        skipped=[item.path for item in skipped],
        split=name,
    )


def _trained_on(run: Path) -> set[bytes]:
    """Cache keys of the pictures a run was trained on; none where it does not say."""
    path = run / SELECTION
    if not path.is_file():
        return set()
    return {key.tobytes() for key in Selection.load(path).train_keys[0]}


def _content(picture: Picture) -> bytes:
    try:
        return hashlib.sha256(picture.read()).digest()
    except UnreadableError as error:
        raise DataError(
            f"a picture changed while it was judged: {error}",
            where=picture.path,
            remedy="run the command again",
        ) from error
