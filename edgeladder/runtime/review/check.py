"""Everything that `check` looks for, from the cache: wrong labels, duplicates, confusion, few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.review import Confused, Duplicate, Review, SmallClass, Suspect
from edgeladder.runtime.logits import ClassLogits
from edgeladder.runtime.pictures.dataset import split
from edgeladder.runtime.review.duplicates import find_duplicates
from edgeladder.runtime.review.held_out import HeldOut, held_out_labels
from edgeladder.runtime.review.thumbnails import Square, light, thumbnails

if TYPE_CHECKING:
    from edgeladder.runtime.pictures.dataset import Dataset, Picture
    from edgeladder.runtime.review.activations import Cached

Array = np.ndarray

FEW = 8  # training pictures: below, every further one is worth a point or two (docs/few-shot.md)
IMPROBABLE = 0.2  # of a label: below, and with another class ahead, it is listed
CONFUSED_SHARE = 0.05  # of two classes' pictures taken for the other one
_MOST_CONFUSED = 10


@dataclass(frozen=True)
class CheckOptions:
    """What is asked of a check."""

    most: int  # pictures that a fit holds
    listed: int = 100  # suspects in the list
    thumbnails: bool = False
    seed: int = 0


def check_pictures(
    dataset: Dataset,
    cached: Cached,
    text: Array,
    square: Square,
    options: CheckOptions,
    on_step: Callable[[], None] = lambda: None,
) -> Review:
    """Look through labelled pictures whose activations are cached.

    Args:
        dataset: the labelled pictures.
        cached: those of them that can be read.
        text: (C, D) CLIP's embeddings of the classes' names.
        square: reads a picture.
        options: what is asked.
        on_step: called between parts of the work; may raise to stop.
    """
    pictures = cached.pictures
    labels = dataset.labels(pictures).astype(np.int64)
    formula = ClassLogits.of(cached.bundle.manifest.model)
    held = held_out_labels(
        cached.features,
        lambda rows: formula.similarity(cached.embeddings(rows), text),
        labels,
        len(dataset.classes),
        most=options.most,
        seed=options.seed,
        on_step=on_step,
    )
    sides = _sides(dataset, pictures)

    def grey(row: int) -> Array | None:
        pixels = square(pictures[row])
        return None if pixels is None else light(pixels)

    twice = find_duplicates(pictures, sides, cached.keys, cached.embeddings, grey, on_step)
    suspects = _suspects(dataset.classes, pictures, labels, held)
    shown: dict[str, str] = {}
    if options.thumbnails:
        wanted = _interleaved(suspects[: options.listed], twice.groups)
        by_path = {picture.path: picture for picture in pictures}
        shown = thumbnails(wanted, by_path, square, on_step)
    return Review(
        count=len(pictures),
        classes=list(dataset.classes),
        suspects=suspects[: options.listed],
        suspected=len(suspects),
        duplicates=twice.groups,
        repeated=twice.repeated,
        confused=_confused(dataset.classes, labels, held),
        few=FEW,
        small_classes=_small_classes(dataset.classes, pictures, sides),
        skipped=cached.skipped,
        new=cached.new,
        reused=cached.reused,
        judged=bool(np.isfinite(held.given).any()),
        thumbnails=shown,
    )


def _small_classes(
    classes: Sequence[str], pictures: list[Picture], sides: list[str]
) -> list[SmallClass]:
    """Those with fewer than `FEW` training pictures, the smallest first."""
    counts = Counter(p.label for p, side in zip(pictures, sides, strict=True) if side == "train")
    small = [SmallClass(label=name, count=counts[name]) for name in classes if counts[name] < FEW]
    return sorted(small, key=lambda one: one.count)


def _sides(dataset: Dataset, pictures: list[Picture]) -> list[str]:
    """train, validation or test of each picture, as training would take it."""
    if dataset.has_splits:
        return [picture.split or "train" for picture in pictures]
    test = {picture.path for picture in split(dataset, None, 0)[1]}
    return ["test" if picture.path in test else "train" for picture in pictures]


def _suspects(
    classes: list[str], pictures: list[Picture], labels: Array, held: HeldOut
) -> list[Suspect]:
    """Pictures whose label is improbable, the least probable first."""
    wrong = (held.best != labels) & (held.given < IMPROBABLE)  # NaN compares false
    rows = np.flatnonzero(wrong)
    rows = rows[np.argsort(held.given[rows], kind="stable")]
    return [
        Suspect(
            path=pictures[row].path,
            label=pictures[row].label,
            probability=round(float(held.given[row]), 6),
            suggested=classes[int(held.best[row])],
            suggested_probability=round(float(held.best_probability[row]), 6),
        )
        for row in rows
    ]


def _confused(classes: list[str], labels: Array, held: HeldOut) -> list[Confused]:
    """Pairs of classes taken for each other, the most first."""
    known = np.isfinite(held.given)
    table = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(table, (labels[known], held.best[known]), 1)
    both = table + table.T
    totals = table.sum(axis=1)
    found = []
    for one, other in np.argwhere(np.triu(both, 1)).tolist():
        count, share = int(both[one, other]), both[one, other] / (totals[one] + totals[other])
        if count >= 2 and share >= CONFUSED_SHARE:
            pair = [classes[one], classes[other]]
            found.append(Confused(classes=pair, count=count, share=round(float(share), 4)))
    return sorted(found, key=lambda item: -item.share)[:_MOST_CONFUSED]


def _interleaved(suspects: list[Suspect], groups: list[Duplicate]) -> list[str]:
    """Paths worth a thumbnail: the worst suspects and the first groups, in turn."""
    lists = [[item.path] for item in suspects], [[p.path for p in g.pictures] for g in groups]
    found: list[str] = []
    for index in range(max(map(len, lists), default=0)):
        for part in lists:
            found += part[index] if index < len(part) else []
    return found
