"""Caches filled with random activations, for which no backbone need run.

Training's memory and time do not depend on what they say.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeladder.runtime.cache.selection import Selection, stack_keys
from edgeladder.runtime.cache.store import ActivationCache, sample_key

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle

_BLOCK = 64


def _keys(label: str, count: int) -> list[bytes]:
    digests = (hashlib.sha256(f"{label} {index}".encode()).digest() for index in range(count))
    return [sample_key(digest) for digest in digests]


def fill(bundle: Bundle, folder: Path, side: Literal["image", "text"], keys: list[bytes]) -> None:
    """Random activations of one side under these keys; what is there stays."""
    tower = getattr(bundle.manifest, side)
    store = ActivationCache.open(folder, bundle, side, "fp16", writable=True)
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {tap.name: (tap.tokens, tap.width) for tap in tower.taps}
    shapes["embedding"] = (bundle.manifest.model.embedding_dim,)
    if side == "image" and store.layout.embedding_pre is not None:
        shapes["embedding_pre"] = store.layout.embedding_pre.shape
    block = {
        name: random.standard_normal((_BLOCK, *shape), np.float32) for name, shape in shapes.items()
    }
    for start in range(0, len(keys), _BLOCK):
        part = keys[start : start + _BLOCK]
        rolled = {name: np.roll(array, start, -1)[: len(part)] for name, array in block.items()}
        store.put(part, rolled)
    store.close()


def fabricate(
    bundle: Bundle, folder: Path, pictures: int, classes: int, test: int = 8
) -> Selection:
    """Fill (or find filled) a cache with `pictures` and `classes`; the selection of all of them."""
    train, held_out = _keys("picture", pictures), _keys("held out", test)
    texts = _keys("class", classes)
    fill(bundle, folder, "image", [*train, *held_out])
    fill(bundle, folder, "text", texts)
    names = [f"class{index:05d}" for index in range(classes)]
    return Selection(
        train_keys=stack_keys(train)[None],
        train_labels=(np.arange(pictures) % classes).astype(np.int32),
        test_keys=stack_keys(held_out),
        test_labels=(np.arange(test) % classes).astype(np.int32),
        text_keys=stack_keys(texts),
        classes=names,
        class_names=names,
        templates=["a photo of a {}."],
    )
