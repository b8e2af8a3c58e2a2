"""Pictures and class names -> cached activations: only what is new, and nothing done twice.

Every picture is read once: hashed, looked up, decoded if it is missing. Decoded squares wait on
disk until a group is full; then the tower runs over the group and its samples are written. A stop
at any moment keeps every group before it.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.bundle import Side
from edgeladder.core.errors import DataError
from edgeladder.runtime.cache.layout import TapDtype
from edgeladder.runtime.cache.selection import Selection, stack_keys
from edgeladder.runtime.cache.store import ActivationCache, sample_key
from edgeladder.runtime.cache.working_folder import remove_working_folder, working_folder
from edgeladder.runtime.pictures.dataset import Dataset, Picture
from edgeladder.runtime.pictures.decode import EXACT_PIXELS
from edgeladder.runtime.pictures.decode_watch import DecodeWatch
from edgeladder.runtime.pictures.reduction import large_scale
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.runtime.pictures.views import VERSION
from edgeladder.runtime.towers.class_run import ClassRun, prompts_key
from edgeladder.runtime.towers.picture_run import PictureGuard, PictureRun, Progress, spell_skipped
from edgeladder.runtime.towers.runner import TowerSizes
from edgeladder.runtime.towers.tokens import DEFAULT_TEMPLATES, class_prompts

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle


@dataclass(frozen=True)
class Wanted:
    """What the cache shall hold."""

    train: Sequence[Picture]
    test: Sequence[Picture]
    views: int = 0  # augmented ones, of training pictures only
    dtype: TapDtype = "fp16"
    avoid: frozenset[str] = frozenset()  # paths that are passed over like unreadable pictures
    unlabelled: Sequence[Picture] = ()

    @property
    def pictures(self) -> list[tuple[Picture, int]]:
        """All of them, training ones first, with their number of views; unlabelled ones last."""
        plain = (*self.test, *self.unlabelled)
        return [(it, self.views) for it in self.train] + [(it, 0) for it in plain]


@dataclass(frozen=True)
class PrecomputeSizes:
    """How much at a time, for both towers; chosen by the plan."""

    image: TowerSizes = TowerSizes()
    text: TowerSizes = TowerSizes(group=512, batch=4)
    max_pixels: int = EXACT_PIXELS  # decoded in full; 4 bytes of memory each
    picture_bytes: int | None = None  # of memory for decoding one; None: no limit


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
    wanted: Wanted,
    *,
    sizes: PrecomputeSizes = PrecomputeSizes(),
    progress: Progress | None = None,
    on_group: Callable[[], None] | None = None,
    on_decode: Callable[[str], None] | None = None,
) -> PrecomputeResult:
    """Fill the cache with what these pictures and their classes need.

    Args:
        progress: told samples done, their number, and of what.
        on_decode: told the path of each picture before it is decoded, and "" when a tower runs.
        on_group: called when a group's samples are on disk; an exception in it stops the work.

    Raises:
        DataError: over 5 % unreadable pictures, or a class left without training pictures by them.
        StorageError: the disk is full. As with any stop, what is written is kept.
    """
    templates = list(dataset.templates or DEFAULT_TEMPLATES)
    folder, dtype = Path(cache_folder), wanted.dtype
    workdir = working_folder(folder)
    try:
        started = time.perf_counter()
        store = writable_store(bundle, folder, "text", dtype, progress)
        texts = ClassRun(bundle, store, sizes.text, workdir, on_group)
        text_keys = texts.run(class_prompts(dataset.names, templates), progress)
        between = time.perf_counter()
        watch = DecodeWatch(wanted.avoid, on_decode)
        guard = PictureGuard(sizes.max_pixels, sizes.picture_bytes, watch)
        provider = sizes.image.provider
        store = writable_store(bundle, folder, "image", dtype, progress, provider.arithmetic)
        images = PictureRun(bundle, store, sizes.image, guard, workdir, on_group)
        keys = images.run(wanted.pictures, dataset.source, progress)
        ended = time.perf_counter()
    finally:
        remove_working_folder(workdir)
    selection = _selection(dataset, wanted, templates, text_keys, images.skipped, keys)
    selection.arithmetic = provider.arithmetic
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


def looked_up(
    bundle: Bundle,
    dataset: Dataset,
    cache_folder: str | Path,
    wanted: Wanted,
    arithmetic: str,
    *,
    most_bytes: int,
    obey: Callable[[], None] = lambda: None,
) -> PrecomputeResult | None:
    """What `precompute` would answer where the cache holds all of it; None where it may not.

    Args:
        arithmetic: of the provider whose results are wanted; empty: the CPU's.
        most_bytes: of pictures that are read for it; where there are more, nothing is known.
        obey: called between pictures; may raise to stop.
    """
    started = time.perf_counter()
    folder, dtype = Path(cache_folder), wanted.dtype
    templates = list(dataset.templates or DEFAULT_TEMPLATES)
    text_keys = [prompts_key(texts) for texts in class_prompts(dataset.names, templates)]
    with contextlib.closing(ActivationCache.open(folder, bundle, "text", dtype)) as store:
        if any(key not in store for key in text_keys):
            return None
    between = time.perf_counter()
    keys: list[list[bytes]] = []
    store = ActivationCache.open(folder, bundle, "image", dtype, arithmetic=arithmetic)
    with contextlib.closing(store):
        for picture, views in wanted.pictures:
            obey()
            try:
                content = picture.read(most_bytes)
            except UnreadableError:
                return None
            most_bytes -= len(content)
            found = _cached_keys(store, content, bundle.manifest.preprocess.size, views)
            if most_bytes < 0 or found is None:
                return None
            keys.append(found)
    selection = _selection(dataset, wanted, templates, text_keys, [], keys)
    selection.arithmetic = arithmetic
    return PrecomputeResult(
        selection=selection,
        reused=sum(map(len, keys)),
        text_reused=len(text_keys),
        seconds=time.perf_counter() - between,
        text_seconds=between - started,
    )


def _cached_keys(
    store: ActivationCache, content: bytes, side: int, views: int
) -> list[bytes] | None:
    """Keys of a picture's views 0..n, as `PictureRun` finds them; None where one is not there."""
    digest, found = hashlib.sha256(content).digest(), []
    scales = dict.fromkeys((1, large_scale(content, side)))
    for view in range(views + 1):
        keys = (sample_key(digest, view, VERSION, scale=scale) for scale in scales)
        key = next((key for key in keys if key in store), None)
        if key is None:
            return None
        found.append(key)
    return found


def writable_store(
    bundle: Bundle,
    folder: Path,
    side: Side,
    dtype: TapDtype,
    progress: Progress | None,
    arithmetic: str = "",
) -> ActivationCache:
    """A store to write to; whoever waits for its other writer says so."""

    def tell(what: str) -> None:
        if progress is not None:
            progress(0, 0, what)

    return ActivationCache.open(
        folder, bundle, side, dtype, writable=True, tell=tell, arithmetic=arithmetic
    )


def _selection(
    dataset: Dataset,
    wanted: Wanted,
    templates: list[str],
    text_keys: list[bytes],
    skipped: list[dict[str, str]],
    keys: list[list[bytes]],
) -> Selection:
    """What a run needs of the cache; `keys`: of each wanted picture's views.

    Raises:
        DataError: a class is left without training pictures.
    """
    train, test = _found(dataset, wanted, keys, skipped)
    views = range(wanted.views + 1)
    return Selection(
        train_keys=np.stack([stack_keys([found[view] for found in train.keys]) for view in views]),
        train_labels=train.labels,
        test_keys=stack_keys([found[0] for found in test.keys]),
        test_labels=test.labels,
        unlabelled_keys=_others(keys[len(wanted.train) + len(wanted.test) :], train, test),
        text_keys=stack_keys(text_keys),
        classes=list(dataset.classes),
        class_names=dataset.class_names,
        aliases=[list(item.aliases) for item in dataset.names],
        templates=templates,
        dtype=wanted.dtype,
        skipped=skipped,
    )


@dataclass(frozen=True)
class _Found:
    """Pictures that could be read."""

    keys: list[list[bytes]]  # of each one's views
    labels: np.ndarray


def _found(
    dataset: Dataset, wanted: Wanted, keys: list[list[bytes]], skipped: list[dict[str, str]]
) -> tuple[_Found, _Found]:
    """Training and test pictures without those that were skipped.

    Raises:
        DataError: a class is left without training pictures.
    """
    count, found = len(wanted.train), []
    tests = keys[count : count + len(wanted.test)]
    for pictures, of in ((wanted.train, keys[:count]), (wanted.test, tests)):
        labels, rows = dataset.labels(pictures), [row for row, views in enumerate(of) if views]
        found.append(_Found([of[row] for row in rows], labels[rows]))
    lost = sorted(set(dataset.labels(wanted.train).tolist()) - set(found[0].labels.tolist()))
    if lost:
        raise DataError(
            f"none of the training pictures of class {dataset.classes[lost[0]]!r} can be read",
            where=f"{dataset.source}: {spell_skipped(skipped)}",
            remedy="replace these pictures; what is cached is kept",
        )
    return found[0], found[1]


def _others(keys: list[list[bytes]], train: _Found, test: _Found) -> np.ndarray:
    """Keys (u, KEY_BYTES) of unlabelled pictures, each once; none whose bytes train or test."""
    known = {found[0] for side in (train, test) for found in side.keys}
    fresh = dict.fromkeys(found[0] for found in keys if found and found[0] not in known)
    return stack_keys(list(fresh))
