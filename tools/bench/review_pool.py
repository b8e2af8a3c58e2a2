"""Pictures of one data set as `check` and `suggest` see them: for the benchmarks of both."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.runtime.logits import ClassLogits
from edgeladder.runtime.pictures.dataset import Picture, open_data
from edgeladder.runtime.review.activations import Cached, cache_pictures, class_text
from edgeladder.runtime.towers.fill_cache import PrecomputeSizes
from edgeladder.runtime.towers.runner import TowerSizes

Array = np.ndarray
DATASETS = ("flowers5", "rsscn7", "clothing", "cifar10")


@dataclass
class Pool:
    """Pictures of a data set, by row."""

    cached: Cached
    labels: Array  # (n,)
    classes: int
    features: Array  # (n, W) float16, as `Cached.features` gives them
    zero_shot: Array  # (n, C)


def load(bundle: Bundle, data: Path, cache: Path, per_class: int) -> Pool:
    """At most so many pictures of every class, by a fixed hash of their names."""
    dataset = open_data(data)
    order = sorted(dataset.pictures, key=lambda p: hashlib.sha256(p.path.encode()).digest())
    counts: Counter[str] = Counter()
    chosen: list[Picture] = []
    for picture in order:
        if counts[picture.label] < per_class:
            counts[picture.label] += 1
            chosen.append(picture)
    tower = TowerSizes(group=256, batch=8, threads=1, whole=True)
    sizes = PrecomputeSizes(image=tower)
    text = class_text(bundle, dataset, cache, sizes)
    cached = cache_pictures(bundle, chosen, cache, sizes, where=str(data))
    rows = np.arange(len(cached.pictures))
    formula = ClassLogits.of(bundle.manifest.model)
    return Pool(
        cached,
        dataset.labels(cached.pictures).astype(np.int64),
        len(dataset.classes),
        cached.features(rows),
        formula.similarity(cached.embeddings(rows), text),
    )
