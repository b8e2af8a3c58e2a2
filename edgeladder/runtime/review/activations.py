"""Pictures through the cache for a review: what is missing is computed, then read in parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.errors import DataError
from edgeladder.runtime.cache.inputs import KEEP_BYTES, TextInputs, locate
from edgeladder.runtime.cache.selection import stack_keys
from edgeladder.runtime.cache.store import ActivationCache
from edgeladder.runtime.cache.working_folder import remove_working_folder, working_folder
from edgeladder.runtime.logits import Activations
from edgeladder.runtime.pictures.decode_watch import DecodeWatch
from edgeladder.runtime.towers.class_run import ClassRun
from edgeladder.runtime.towers.fill_cache import writable_store
from edgeladder.runtime.towers.picture_run import PictureGuard, PictureRun
from edgeladder.runtime.towers.tokens import DEFAULT_TEMPLATES, class_prompts

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.runtime.pictures.dataset import Dataset, Picture
    from edgeladder.runtime.towers.fill_cache import PrecomputeSizes

Array = np.ndarray
_CHUNK = 64  # pictures whose taps are widened to fp32 at a time

Progress = Callable[[int, int, str], None]  # done, total, of what


@dataclass
class Cached:
    """Readable pictures and where their activations lie."""

    bundle: Bundle
    pictures: list[Picture]
    keys: Array  # (n, KEY_BYTES) uint8: equal where the bytes are
    new: int
    reused: int
    skipped: list[dict[str, str]]
    _cache: ActivationCache
    _places: Array = field(repr=False)  # (n,)

    def activations(self, rows: Array) -> Activations:
        """What is cached of some pictures."""
        ladder, places = self.bundle.manifest.ladder, self._places[rows]
        taps = [self._cache.taps(places, group) for group in ladder.groups if group.side == "image"]
        extra = {name: self._cache.pre_embeddings(places) for name in ladder.image_inputs}
        return Activations(taps, self._cache.embeddings(places), extra)

    def embeddings(self, rows: Array) -> Array:
        """CLIP's own embeddings of some pictures, (n, D) at unit length."""
        return self._cache.embeddings(self._places[rows])

    def features(self, rows: Array) -> Array:
        """The last two taps and the last feature before them, side by side: (n, W) float16.

        Each at unit length; the feature is the embedding before CLIP's projection where the
        bundle has one, else the final embedding.
        """
        parts = []
        for start in range(0, len(rows), _CHUNK):
            found = self.activations(rows[start : start + _CHUNK]).features()
            reads = found[-4:-1] if self.bundle.manifest.ladder.image_inputs else found[-3:]
            wide = np.concatenate([_unit(part) for part in reads], axis=1)
            parts.append((wide / np.sqrt(len(reads))).astype(np.float16))
        return np.concatenate(parts)

    def close(self) -> None:
        """Close the shards."""
        self._cache.abandon()


def feature_width(bundle: Bundle) -> int:
    """W of `Cached.features`."""
    ladder = bundle.manifest.ladder
    taps = [g.tokens * g.width for g in ladder.groups if g.side == "image" for _ in g.taps]
    return sum(taps[-2:]) + 4 * int(bundle.manifest.model.embedding_dim)  # before it: at most so


def cache_pictures(
    bundle: Bundle,
    pictures: Sequence[Picture],
    cache_folder: Path,
    sizes: PrecomputeSizes,
    *,
    where: str,
    progress: Progress | None = None,
    on_group: Callable[[], None] | None = None,
    watch: DecodeWatch | None = None,
) -> Cached:
    """Compute what the cache lacks of these pictures, and open it for reading.

    Raises:
        DataError: not one, or more than 5 % of them cannot be read.
        StorageError: the disk is full; what is written is kept.
    """
    workdir = working_folder(cache_folder)
    try:
        guard = PictureGuard(sizes.max_pixels, sizes.picture_bytes, watch or DecodeWatch())
        provider = sizes.image.provider
        store = writable_store(bundle, cache_folder, "image", "fp16", progress, provider.arithmetic)
        run = PictureRun(bundle, store, sizes.image, guard, workdir, on_group)
        found = run.run([(picture, 0) for picture in pictures], where, progress)
    finally:
        remove_working_folder(workdir)
    there = [row for row, keys in enumerate(found) if keys]
    if not there:
        raise DataError("no picture can be read", where=where, remedy="name JPEG or PNG files")
    keys = stack_keys([found[row][0] for row in there])
    cache = ActivationCache.open(
        cache_folder, bundle, "image", "fp16", arithmetic=provider.arithmetic
    )
    return Cached(
        bundle, [pictures[row] for row in there], keys, run.new, run.reused, run.skipped,
        cache, locate(cache, keys),
    )  # fmt: skip


def class_text(
    bundle: Bundle, dataset: Dataset, cache_folder: Path, sizes: PrecomputeSizes
) -> Array:
    """CLIP's embeddings of the classes' names, (C, D); computed where the cache lacks them."""
    workdir = working_folder(cache_folder)
    try:
        store = writable_store(bundle, cache_folder, "text", "fp16", None)
        texts = ClassRun(bundle, store, sizes.text, workdir, None)
        templates = list(dataset.templates or DEFAULT_TEMPLATES)
        keys = texts.run(class_prompts(dataset.names, templates), None)
    finally:
        remove_working_folder(workdir)
    cache = ActivationCache.open(cache_folder, bundle, "text", "fp16")
    try:
        return TextInputs(cache, stack_keys(keys), [], KEEP_BYTES).embedding[:]
    finally:
        cache.abandon()


def _unit(rows: Array) -> Array:
    rows = np.asarray(rows, np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
