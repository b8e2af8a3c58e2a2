"""One few-shot task in memory: support and test activations of one data set, shots and seed.

Activations come from the same cache a device trains from; nothing here runs the backbone twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.runtime.cache.inputs import CacheReader, open_reader
from edgeladder.runtime.cache.layout import TapDtype
from edgeladder.runtime.cache.selection import Selection
from edgeladder.runtime.logits import Activations as Cached
from edgeladder.runtime.logits import ClassLogits
from edgeladder.runtime.pictures.dataset import Dataset, Picture, open_data, split
from edgeladder.runtime.towers.fill_cache import PrecomputeSizes, Wanted, precompute

Array = np.ndarray
WINDOW = 512  # pictures read from the cache at a time


@dataclass
class Activations:
    """Pictures as every method sees them."""

    embedding: Array  # (n, D) at unit length
    labels: Array  # (n,)
    taps: list[Array]  # (L, T, n, W) float16 per group
    extra: dict[str, Array]  # (n, W)

    def part(self, rows: Array) -> Activations:
        """Some of the pictures."""
        return Activations(
            self.embedding[rows],
            self.labels[rows],
            [tap[:, :, rows] for tap in self.taps],
            {name: values[rows] for name, values in self.extra.items()},
        )

    def features(self, start: int = 0, stop: int | None = None) -> list[Array]:
        """What a closed-form head reads: each tap flattened, the embedding last; float32."""
        taps = [np.asarray(tap[:, :, start:stop], np.float32) for tap in self.taps]
        extra = {name: values[start:stop] for name, values in self.extra.items()}
        return Cached(taps, self.embedding[start:stop], extra).features()

    def pooled(self) -> Array:
        """Every tap's mean over its tokens and the embedding, side by side: (n, sum of widths).

        Each at unit length, and all of them together: none counts more for being wider or longer.
        """
        means = [
            np.asarray(tap, np.float32).mean(axis=0) for group in self.taps for tap in group
        ]  # a tap is (T, n, W)
        parts = [row / np.linalg.norm(row, axis=1, keepdims=True) for row in means]
        return np.asarray(
            np.concatenate([*parts, self.embedding], axis=1) / np.sqrt(len(parts) + 1), np.float32
        )


@dataclass
class Task:
    """Everything a method may use, and the test pictures it is judged on once."""

    name: str
    bundle: Bundle
    support: Activations
    test: Activations
    text: Activations  # one row per class
    shots: int
    seed: int
    rows: Array  # of the pool's training pictures: the support set
    pool: Pool
    labelled: int | None = None  # of those, the first ones; the others have pseudo-labels

    def reader(self, bundle: Bundle) -> CacheReader:
        """The pool's cache as the ladder of `bundle` reads it."""
        return self.pool.reader(bundle)

    @property
    def classes(self) -> int:
        """C."""
        return len(self.text.embedding)

    def zero_shot(self, embedding: Array) -> Array:
        """CLIP's own logits (n, C)."""
        formula = ClassLogits.of(self.bundle.manifest.model)
        return formula.similarity(embedding, self.text.embedding)


@dataclass
class Pool:
    """A data set's cached pictures, from which tasks of any shots and seed are drawn."""

    name: str
    bundle: Bundle
    dataset: Dataset
    train: Activations
    test: Activations
    text: Activations
    rows: dict[str, int]  # picture path -> row of train
    cache: Path
    selection: Selection
    held: int = 0  # validation pictures among `test`, the first ones
    readers: dict[Path, CacheReader] = field(default_factory=dict)

    def reader(self, bundle: Bundle) -> CacheReader:
        """The cache as the ladder of `bundle` reads it; opened once."""
        if bundle.folder not in self.readers:
            self.readers[bundle.folder] = open_reader(bundle, self.cache, self.selection)
        return self.readers[bundle.folder]

    def of_classes(self, start: int, stop: int) -> Pool:
        """The same pool of some classes alone: a ladder trained on it hears of no others."""
        train = np.flatnonzero((self.train.labels >= start) & (self.train.labels < stop))
        test = np.flatnonzero((self.test.labels >= start) & (self.test.labels < stop))
        told = self.selection
        selection = replace(
            told,
            train_keys=told.train_keys[:, train],
            train_labels=told.train_labels[train] - start,
            test_keys=told.test_keys[test],
            test_labels=told.test_labels[test] - start,
            text_keys=told.text_keys[start:stop],
            classes=told.classes[start:stop],
            class_names=told.class_names[start:stop],
            aliases=told.aliases[start:stop],
        )
        place = {int(row): number for number, row in enumerate(train)}
        text = self.text.part(np.arange(start, stop))
        return replace(
            self,
            train=_relabelled(self.train.part(train), start),
            test=_relabelled(self.test.part(test), start),
            text=_relabelled(text, start),
            rows={path: place[row] for path, row in self.rows.items() if row in place},
            selection=selection,
            readers={},
        )

    def task(self, shots: int, seed: int) -> Task:
        """The task of `shots` pictures per class chosen by `seed`."""
        chosen, _ = split(self.dataset, shots, seed)
        rows = np.array([self.rows[p.path] for p in chosen if p.path in self.rows])
        support = self.train.part(rows)
        return Task(self.name, self.bundle, support, self.test, self.text, shots, seed, rows, self)


@dataclass(frozen=True)
class Divided:
    """Data whose validation pictures were taken out; they stand before the test pictures."""

    name: str
    dataset: Dataset
    held: list[Picture]


def load_pool(
    bundle: Bundle,
    data: Path | Divided,
    cache: Path,
    *,
    shots: int,
    seeds: int,
    test_per_class: int | None = None,
    dtype: TapDtype = "fp16",
    views: int = 0,
) -> Pool:
    """Precompute what is missing and load all that `seeds` draws of up to `shots` need.

    Args:
        test_per_class: at most that many test pictures per class, the first by name; None: all.
    """
    parts = data if isinstance(data, Divided) else Divided(data.stem, open_data(data), [])
    dataset, held = parts.dataset, parts.held
    wanted: dict[str, Picture] = {}
    for seed in range(seeds):
        wanted |= {p.path: p for p in split(dataset, shots, seed)[0]}
    train = [wanted[path] for path in sorted(wanted)]
    test = _limited(split(dataset, None, 0)[1], test_per_class)
    result = precompute(
        bundle,
        dataset,
        cache,
        Wanted(train, [*held, *test], views, dtype),
        sizes=_sizes(threads=1),
    )
    reader = open_reader(bundle, cache, result.selection)
    skipped = {item["path"] for item in result.selection.skipped}
    kept = [picture.path for picture in train if picture.path not in skipped]
    count = len(result.selection.text_keys)
    text = Activations(
        reader.text.embedding[:],
        np.arange(count),
        [tap.astype(np.float16) for tap in reader.text.taps(0, count)],
        {},
    )
    pool = Pool(
        parts.name,
        bundle,
        dataset,
        _collect(reader, "train"),
        _collect(reader, "test"),
        text,
        {path: row for row, path in enumerate(kept)},
        cache,
        result.selection,
        sum(picture.path not in skipped for picture in held),
    )
    reader.close()
    return pool


def load_training_pool(bundle: Bundle, data: Path, cache: Path) -> Pool:
    """All training pictures of a data set: for what may not look at the test pictures."""
    return load_pool(bundle, data, cache, shots=1_000_000, seeds=1, test_per_class=1)


def _relabelled(pictures: Activations, start: int) -> Activations:
    return replace(pictures, labels=pictures.labels - start)


def _sizes(threads: int) -> PrecomputeSizes:
    from edgeladder.runtime.towers.runner import TowerSizes

    image = TowerSizes(group=512, batch=16, threads=threads, whole=True)
    return PrecomputeSizes(image=image, text=image)


def _limited(pictures: list[Picture], most: int | None) -> list[Picture]:
    if most is None:
        return pictures
    seen: dict[str, int] = {}
    kept = []
    for picture in sorted(pictures, key=lambda p: p.path):
        seen[picture.label] = seen.get(picture.label, 0) + 1
        if seen[picture.label] <= most:
            kept.append(picture)
    return kept


def _collect(reader: CacheReader, side: Literal["train", "test"]) -> Activations:
    parts = []
    for window in reader.windows(side, WINDOW):
        taps = [t.astype(np.float16) for t in window.image_taps(0, len(window.labels))]
        parts.append(Activations(window.image_embedding, window.labels, taps, window.image_extra))
    first = parts[0]
    return Activations(
        np.concatenate([p.embedding for p in parts]),
        np.concatenate([p.labels for p in parts]),
        [np.concatenate([p.taps[k] for p in parts], axis=2) for k in range(len(first.taps))],
        {name: np.concatenate([p.extra[name] for p in parts]) for name in first.extra},
    )
