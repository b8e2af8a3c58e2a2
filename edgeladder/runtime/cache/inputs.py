"""What a training step reads from the cache, in windows.

Labels, places and pictures' embeddings of the chosen samples are held; taps and class embeddings
are read when the engine asks for them, a window at a time. So memory grows with the window, not
with pictures or classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.runtime.cache.layout import EMBEDDING_PRE, KEY_BYTES
from edgeladder.runtime.cache.sampler import Sampler
from edgeladder.runtime.cache.store import ActivationCache

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.manifest import TapGroup
    from edgeladder.runtime.cache.selection import Selection
    from edgeladder.runtime.engine.protocol import Rows

KEEP_BYTES = 8 << 20  # of decoded text taps, the same in every step


class StoredRows:
    """Embeddings (n, D) of a cache's samples, read when a window of them is asked for."""

    def __init__(self, cache: ActivationCache, locations: np.ndarray):
        self._cache = cache
        self._locations = locations
        self.shape = (len(locations), *cache.layout.embedding.shape)

    def __len__(self) -> int:
        return len(self._locations)

    def __getitem__(self, window: slice, /) -> np.ndarray:
        return self._cache.embeddings(self._locations[window])


class TextInputs:
    """The classes' side, the same in every step."""

    def __init__(self, cache: ActivationCache, keys: np.ndarray, groups: list[TapGroup], keep: int):
        self._cache = cache
        self._groups = groups
        self._locations = locate(cache, keys)
        self.keep_bytes = keep
        self._rows = StoredRows(cache, self._locations)
        self._whole: np.ndarray | None = None
        self._kept: dict[tuple[int, int], list[np.ndarray]] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._locations)

    @property
    def embedding(self) -> Rows:
        """(C, D): held where there is room to keep class activations, else read in windows."""
        if 4 * math.prod(self._rows.shape) > self.keep_bytes:
            return self._rows
        if self._whole is None:
            self._whole = self._rows[:]
        return self._whole

    def taps(self, start: int, stop: int) -> list[np.ndarray]:
        """(L, T, n, W) per text group, classes start to stop; kept while room is left."""
        window = self._kept.get((start, stop))
        if window is None:
            places = self._locations[start:stop]
            window = [self._cache.taps(places, group) for group in self._groups]
            size = sum(array.nbytes for array in window)
            if self._kept_bytes + size <= self.keep_bytes:
                self._kept[start, stop] = window
                self._kept_bytes += size
        return window

    def trim(self) -> None:
        """Drop what is kept; it can be read again."""
        self._kept, self._kept_bytes, self._whole = {}, 0, None


class CacheInputs:
    """`StepInputs` of the samples at given places of the cache."""

    def __init__(
        self,
        cache: ActivationCache,
        locations: np.ndarray,
        labels: np.ndarray,
        groups: list[TapGroup],
        extra: list[str],
        text: TextInputs,
    ):
        self._cache = cache
        self._locations = locations
        self._groups = groups
        self._text = text
        self.labels = labels.astype(np.int64)
        self.image_embedding = cache.embeddings(locations)
        self.text_embedding: Rows = text.embedding
        self.image_extra = {name: _extra(cache, name, locations) for name in extra}

    def image_taps(self, start: int, stop: int) -> list[np.ndarray]:
        """(L, T, n, W) float32 per image group, samples start to stop."""
        return [self._cache.taps(self._locations[start:stop], group) for group in self._groups]

    def text_taps(self, start: int, stop: int) -> list[np.ndarray]:
        """(L, T, n, W) float32 per text group, classes start to stop. Not to be written to."""
        return self._text.taps(start, stop)


def _extra(cache: ActivationCache, name: str, locations: np.ndarray) -> np.ndarray:
    if name != f"image_{EMBEDDING_PRE}":
        raise ConfigError(
            f"the ladder wants {name!r}, which no cache holds",
            where="the bundle's manifest",
            remedy="use the edgeladder version that made the bundle",
        )
    return cache.pre_embeddings(locations)


def locate(cache: ActivationCache, keys: np.ndarray) -> np.ndarray:
    """Places of keys (n, KEY_BYTES), all of which must be there.

    Raises:
        IntegrityError: samples are missing.
    """
    found = cache.find(keys.reshape(-1, KEY_BYTES))
    missing = int(np.count_nonzero(found < 0))
    if missing:
        raise IntegrityError(
            f"{missing} of {len(found)} samples are not in the cache",
            where=str(cache.folder),
            remedy="run `edgeladder precompute` with the same pictures and bundle again",
        )
    return found


class CacheReader:
    """The cache as one run sees it: both sides of a selection."""

    def __init__(
        self, bundle: Bundle, cache_folder: str | Path, selection: Selection, keep_bytes: int
    ):
        ladder = bundle.manifest.ladder
        self._groups = [group for group in ladder.groups if group.side == "image"]
        self._extra = list(ladder.image_inputs)
        self._images = ActivationCache.open(
            cache_folder, bundle, "image", selection.dtype, arithmetic=selection.arithmetic
        )
        self._texts = ActivationCache.open(cache_folder, bundle, "text", selection.dtype)
        # damage on one side has the other looked through, so that one precompute heals both
        self._images.reader.companions = [self._texts.reader]
        self._texts.reader.companions = [self._images.reader]
        text_groups = [group for group in ladder.groups if group.side == "text"]
        self.text = TextInputs(self._texts, selection.text_keys, text_groups, keep_bytes)
        self._texts.forget_index()
        self.train = np.stack([locate(self._images, keys) for keys in selection.train_keys])
        self.test = locate(self._images, selection.test_keys)
        self._waiting = locate(self._images, selection.unlabelled_keys)
        self._images.forget_index()
        self.train_labels, self.test_labels = selection.train_labels, selection.test_labels

    def inputs(self, locations: np.ndarray, labels: np.ndarray) -> CacheInputs:
        """Inputs of the samples at these places."""
        return CacheInputs(self._images, locations, labels, self._groups, self._extra, self.text)

    def part(self, rows: np.ndarray) -> CacheReader:
        """The same cache, of the training pictures only those in `rows`."""
        part = copy.copy(self)
        part.train, part.train_labels = self.train[:, rows], self.train_labels[rows]
        return part

    def unlabelled(self) -> CacheReader:
        """The same cache, where the pictures without a label train; their labels say nothing."""
        part = copy.copy(self)
        part.train, part.train_labels = self._waiting[None], np.zeros(len(self._waiting), np.int32)
        return part

    def windows(
        self, side: Literal["train", "test"], size: int, *, limit: int | None = None
    ) -> Iterator[CacheInputs]:
        """Samples of a side in plain view, `size` at a time.

        All of them in their order, or at most `limit`, taken evenly over the order.
        """
        places = self.train[0] if side == "train" else self.test
        labels = self.train_labels if side == "train" else self.test_labels
        if limit is not None and limit < len(places):
            chosen = np.arange(limit) * len(places) // limit
            places, labels = places[chosen], labels[chosen]
        for start in range(0, len(places), size):
            yield self.inputs(places[start : start + size], labels[start : start + size])

    def close(self) -> None:
        """Close the shards."""
        self._images.close()
        self._texts.close()


class CacheBatches:
    """A run's batches: the sampler's choice, read from the cache."""

    def __init__(self, reader: CacheReader, sampler: Sampler):
        self.reader = reader
        self.sampler = sampler
        self.classes = len(reader.text)

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every training picture was seen once."""
        return self.sampler.steps_per_epoch

    def next(self) -> CacheInputs:
        """Inputs of the next step."""
        indices, views = self.sampler.next()
        places = self.reader.train[views, indices]
        return self.reader.inputs(places, self.reader.train_labels[indices])

    def state(self) -> dict[str, Any]:
        """The sampler's position, as JSON values."""
        return self.sampler.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a `state()`."""
        self.sampler.load_state(state)

    def trim(self) -> None:
        """Drop windows that can be read again."""
        self.reader.text.trim()

    def close(self) -> None:
        """Close the shards."""
        self.reader.close()


def open_reader(
    bundle: Bundle,
    cache_folder: str | Path,
    selection: Selection,
    *,
    keep_bytes: int = KEEP_BYTES,
) -> CacheReader:
    """The cache through a selection, for evaluation and closed-form heads.

    Raises:
        IntegrityError: samples are missing from the cache.
    """
    return CacheReader(bundle, cache_folder, selection, keep_bytes)


def open_batches(
    bundle: Bundle,
    cache_folder: str | Path,
    selection: Selection,
    *,
    batch: int,
    seed: int,
    keep_bytes: int = KEEP_BYTES,
) -> CacheBatches:
    """The batches of a training run.

    Args:
        batch: pictures per step, at most as many as there are.
        keep_bytes: decoded text taps kept between steps; 0 reads them again each time.

    Raises:
        IntegrityError: samples are missing from the cache.
    """
    reader = CacheReader(bundle, cache_folder, selection, keep_bytes)
    sampler = Sampler(len(selection.train_labels), batch, seed, selection.views)
    return CacheBatches(reader, sampler)
