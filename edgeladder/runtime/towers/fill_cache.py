"""Pictures and class names -> cached activations: only what is new, and nothing done twice.

Every picture is read once: hashed, looked up, decoded if it is missing. Decoded squares wait on
disk until a group is full; then the tower runs over the group and its samples are written. A stop
at any moment keeps every group before it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.errors import DataError
from edgeladder.runtime.cache.layout import TapDtype
from edgeladder.runtime.cache.selection import Selection, stack_keys
from edgeladder.runtime.cache.store import remove_working_folder, working_folder
from edgeladder.runtime.pictures.class_names import ClassName, readable
from edgeladder.runtime.pictures.dataset import Dataset, Picture, split
from edgeladder.runtime.pictures.decode import EXACT_PIXELS
from edgeladder.runtime.towers.class_run import ClassRun
from edgeladder.runtime.towers.picture_run import PictureRun, Progress, spell_skipped
from edgeladder.runtime.towers.runner import TowerSizes
from edgeladder.runtime.towers.tokens import DEFAULT_TEMPLATES, class_prompts

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle


@dataclass(frozen=True)
class PrecomputeSizes:
    """How much at a time, for both towers; chosen by the plan."""

    image: TowerSizes = TowerSizes()
    text: TowerSizes = TowerSizes(group=512, batch=4)
    max_pixels: int = EXACT_PIXELS  # decoded in full; 4 bytes of memory each


@dataclass
class PrecomputeResult:
    """What was computed, and what a run needs of it."""

    selection: Selection
    new: int = 0  # samples (pictures and views) computed now
    reused: int = 0
    text_new: int = 0  # classes
    text_reused: int = 0
    skipped: list[dict[str, str]] = field(default_factory=list)  # path and reason
    seconds: float = 0.0  # pictures only
    text_seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Samples computed per second, decoding and writing included; 0 if none was."""
        return self.new / self.seconds if self.new and self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Counts for JSON."""
        return {
            "new": self.new,
            "reused": self.reused,
            "text_new": self.text_new,
            "text_reused": self.text_reused,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 3),
            "text_seconds": round(self.text_seconds, 3),
            "images_per_second": round(self.images_per_second, 3),
        }


def precompute(
    bundle: Bundle,
    dataset: Dataset,
    cache_folder: str | Path,
    *,
    train: Sequence[Picture] | None = None,
    test: Sequence[Picture] | None = None,
    views: int = 0,
    dtype: TapDtype = "fp16",
    sizes: PrecomputeSizes | None = None,
    classes: list[str] | None = None,
    names: Sequence[ClassName | str] | None = None,
    templates: Sequence[str] | None = None,
    progress: Progress | None = None,
    on_group: Callable[[], None] | None = None,
) -> PrecomputeResult:
    """Fill the cache with what these pictures and classes need.

    Args:
        train, test: default to `split(dataset, None, 0)`; augmented `views` are of `train` only.
        classes: folder names in the order of labels, an adapter's perhaps; the data set's.
        names: readable names of those classes; the data set's.
        templates: prompt templates; the data set's, else `DEFAULT_TEMPLATES`.
        on_group: called when a group's samples are on disk; an exception in it stops the work.

    Raises:
        DataError: a label not among `classes`, over 5 % unreadable pictures, or a class left
            without training pictures by them.
        StorageError: the disk is full. As with any stop, what is written is kept.
    """
    if train is None or test is None:
        train, test = split(dataset, None, 0)
    known = dataset.classes if classes is None else classes
    if names is None:
        described = dict(zip(dataset.classes, dataset.names, strict=True))
        names = [described.get(name) or readable(name) for name in known]
    described_names = [readable(name) if isinstance(name, str) else name for name in names]
    templates = list(templates or dataset.templates or DEFAULT_TEMPLATES)
    sizes = sizes or PrecomputeSizes()
    train_labels, test_labels = dataset.labels(train, known), dataset.labels(test, known)
    folder = Path(cache_folder)
    workdir = working_folder(folder)
    try:
        started = time.perf_counter()
        texts = ClassRun(bundle, folder, dtype, sizes.text, workdir, on_group)
        text_keys = texts.run(class_prompts(described_names, templates), progress)
        between = time.perf_counter()
        images = PictureRun(bundle, folder, dtype, sizes.image, sizes.max_pixels, workdir, on_group)
        wanted = [*((picture, views) for picture in train), *((picture, 0) for picture in test)]
        keys = images.run(wanted, dataset.source, progress)
        ended = time.perf_counter()
    finally:
        remove_working_folder(workdir)
    train_found = [index for index in range(len(train)) if keys[index]]
    test_found = [index for index in range(len(test)) if keys[len(train) + index]]
    _check_classes_left(train_labels, train_found, known, dataset.source, images.skipped)
    selection = Selection(
        train_keys=np.stack(
            [stack_keys([keys[i][view] for i in train_found]) for view in range(views + 1)]
        ),
        train_labels=train_labels[train_found],
        test_keys=stack_keys([keys[len(train) + i][0] for i in test_found]),
        test_labels=test_labels[test_found],
        text_keys=stack_keys(text_keys),
        classes=list(known),
        class_names=[item.name for item in described_names],
        aliases=[list(item.aliases) for item in described_names],
        templates=templates,
        dtype=dtype,
        skipped=images.skipped,
    )
    return PrecomputeResult(
        selection=selection,
        new=images.new,
        reused=images.reused,
        text_new=texts.new,
        text_reused=texts.reused,
        skipped=images.skipped,
        seconds=ended - between,
        text_seconds=between - started,
    )


def _check_classes_left(
    labels: np.ndarray, found: list[int], classes: list[str], where: str, skipped: list[Any]
) -> None:
    lost = sorted(set(labels.tolist()) - set(labels[found].tolist()))
    if lost:
        raise DataError(
            f"none of the training pictures of class {classes[lost[0]]!r} can be read",
            where=f"{where}: {spell_skipped(skipped)}",
            remedy="replace these pictures; what is cached is kept",
        )
