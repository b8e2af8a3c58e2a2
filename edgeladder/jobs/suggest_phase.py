"""The suggest worker: unlabelled pictures through the cache, and which to label next."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import DataError
from edgeladder.core.inference import InferenceOrder
from edgeladder.core.suggestion import Suggested, Suggestions
from edgeladder.jobs.review_work import ReviewWork, leaving, run_workload
from edgeladder.runtime.classifier import Classifier, InferenceSizes, OpenedRun, probabilities
from edgeladder.runtime.pictures.dataset import UNLABELLED, Dataset, open_data
from edgeladder.runtime.pictures.unlabelled import list_pictures
from edgeladder.runtime.review.suggest import ENOUGH, Chosen, choose, reduced
from edgeladder.runtime.review.thumbnails import thumbnails

if TYPE_CHECKING:
    from edgeladder.core.orders import Outcome
    from edgeladder.jobs.control import Control
    from edgeladder.runtime.pictures.dataset import Picture
    from edgeladder.runtime.review.activations import Cached

Array = np.ndarray
_CHUNK = 64  # pictures that the run judges at a time


def suggest(order: InferenceOrder, control: Control) -> tuple[Outcome, Suggestions | None]:
    """Choose among the pictures that the request names.

    Raises:
        BudgetError: nothing fits.
        DataError: no pictures, or more than 5 % of them cannot be read.
    """
    request = order.request
    where = request.paths[0]
    waiting = list_pictures([where])
    dataset = _labelled(Path(request.data or "data"))
    run = OpenedRun.open(Path(request.run)) if request.run else None
    bundle = run.bundle if run is not None else Bundle.open(request.bundle or "bundle")
    pictures = [*waiting, *(dataset.pictures if dataset is not None else ())]
    workload = run_workload(bundle, run, len(pictures), len(dataset.classes) if dataset else 1)
    work = ReviewWork.begin(order, control, bundle, workload)
    if order.only_plan:
        return "done", None

    def look() -> Suggestions:
        cached = work.cached(pictures, where)
        try:
            return _chosen(work, cached, _Asked(request.top, dataset, run, request.thumbnails))
        finally:
            cached.close()

    outcome, found = leaving(look)
    return outcome, cast("Suggestions | None", found)


class _Asked:
    """What is wanted, of what."""

    def __init__(
        self, count: int, dataset: Dataset | None, run: OpenedRun | None, pictures: bool
    ) -> None:
        self.count, self.dataset, self.run, self.pictures = count, dataset, run, pictures


def _labelled(data: Path) -> Dataset | None:
    """The labelled pictures; None where there are none yet."""
    if not data.exists():
        return None
    if data.is_dir():
        visible = {path.name for path in data.iterdir() if not path.name.startswith(".")}
        if not visible - {UNLABELLED, "classes.yaml"}:
            return None
    return open_data(data)


def _chosen(work: ReviewWork, cached: Cached, asked: _Asked) -> Suggestions:
    named = set(map(id, asked.dataset.pictures)) if asked.dataset is not None else set()
    has_label = np.array([id(picture) in named for picture in cached.pictures], bool)
    content = np.unique(cached.keys, axis=0, return_inverse=True)[1].reshape(-1)
    labelled = np.flatnonzero(has_label)
    known = np.isin(content, content[labelled]) & ~has_label
    fresh = np.flatnonzero(~has_label & ~known)
    fresh = fresh[np.sort(np.unique(content[fresh], return_index=True)[1])]
    if not len(fresh):
        raise DataError(
            "every unlabelled picture has a label already",
            where=cached.pictures[0].path,
            remedy="name new pictures with --unlabelled",
        )
    width = cached.features(fresh[:1]).shape[1]
    rows = reduced(cached.features, len(cached.pictures), width)
    shares = None if asked.run is None else _shares(work, cached, asked.run, fresh)
    sure = None
    enough = asked.dataset is not None and len(labelled) >= ENOUGH * len(asked.dataset.classes)
    if enough and shares is not None and shares.shape[1] > 1:
        ordered = np.sort(shares, axis=1)
        sure = ordered[:, -1] - ordered[:, -2]
    found = choose(rows[fresh], rows[labelled], asked.count, sure=sure, on_step=work.obey)
    listed = _listed(found, fresh, cached.pictures, shares, asked.run, unsure=sure is not None)
    shown: dict[str, str] = {}
    if asked.pictures:
        by_path = {cached.pictures[row].path: cached.pictures[row] for row in fresh.tolist()}
        shown = thumbnails([item.path for item in listed], by_path, work.square, work.obey)
    return Suggestions(
        pictures=listed,
        unlabelled=len(fresh),
        labelled=len(labelled),
        known=int(known.sum()),
        classes=asked.dataset.classes if asked.dataset is not None else [],
        run=str(asked.run.folder) if sure is not None and asked.run is not None else None,
        skipped=cached.skipped,
        new=cached.new,
        reused=cached.reused,
        thumbnails=shown,
    )


def _listed(
    found: Chosen,
    fresh: Array,
    pictures: list[Picture],
    shares: Array | None,
    run: OpenedRun | None,
    *,
    unsure: bool,
) -> list[Suggested]:
    listed = []
    for row, size in zip(found.rows.tolist(), found.stands_for.tolist(), strict=True):
        guess, chance = None, None
        if shares is not None and run is not None:
            best = int(shares[row].argmax())
            guess, chance = run.vocabulary.classes[best], round(float(shares[row, best]), 6)
        listed.append(
            Suggested(
                path=pictures[int(fresh[row])].path,
                reason="uncertain" if unsure else "covers",
                stands_for=int(size),
                guess=guess,
                probability=chance,
            )
        )
    return listed


def _shares(work: ReviewWork, cached: Cached, run: OpenedRun, rows: Array) -> Array:
    """The run's probabilities (n, C) from cached activations: the image tower stays closed."""
    sizes = InferenceSizes(whole=False, batch=1)
    found = []
    with Classifier(run, sizes, threads=work.threads, on_batch=lambda _: work.obey()) as classifier:
        for start in range(0, len(rows), _CHUNK):
            given = cached.activations(rows[start : start + _CHUNK])
            found.append(probabilities(classifier.judge(given)[0]))
            work.obey()
    return np.concatenate(found)
