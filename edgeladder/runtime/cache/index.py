"""Which key lies where: sorted arrays in memory, one file between runs.

The file only saves reading every shard's keys. It has a checksum, and is a hint even so: the store
compares what it says with the keys in the shards, and makes it anew where they differ.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgeladder.core.errors import IntegrityError
from edgeladder.core.tensors import TensorFile, write_tensors
from edgeladder.runtime.cache.layout import KEY_BYTES


class KeyIndex:
    """Keys (n, KEY_BYTES) uint8 and their locations (n,) int64, sorted by key."""

    def __init__(self) -> None:
        self.set(np.empty((0, KEY_BYTES), np.uint8), np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.keys)

    def set(self, keys: np.ndarray, locations: np.ndarray) -> None:
        """Hold these instead, in any order; of equal keys the lowest location is found."""
        heads = np.ascontiguousarray(keys).view(np.dtype(">u8")).reshape(-1, KEY_BYTES // 8)
        order = np.lexsort((locations, heads[:, 1], heads[:, 0]))
        self.keys = np.ascontiguousarray(keys[order])
        self.locations = locations[order]
        self._heads = heads[order, 0].astype(np.uint64)  # the keys' first halves, for the search

    def add(self, keys: np.ndarray, locations: np.ndarray) -> None:
        """Hold these too."""
        self.set(np.concatenate([self.keys, keys]), np.concatenate([self.locations, locations]))

    def search(self, keys: np.ndarray) -> np.ndarray:
        """Locations (n,) int64 of keys (n, KEY_BYTES) uint8; -1 where there is none."""
        keys = np.ascontiguousarray(keys, np.uint8).reshape(-1, KEY_BYTES)
        found = np.full(len(keys), -1, np.int64)
        if not len(self.keys) or not len(keys):
            return found
        heads = keys.view(np.dtype(">u8"))[:, 0].astype(np.uint64)
        at = np.searchsorted(self._heads, heads)
        pending = np.arange(len(keys))
        while len(pending):  # one round, unless first halves clash
            inside = pending[at[pending] < len(self.keys)]
            inside = inside[self._heads[at[inside]] == heads[inside]]
            same = (self.keys[at[inside]] == keys[inside]).all(axis=1)
            found[inside[same]] = self.locations[at[inside[same]]]
            pending = inside[~same]
            at[pending] += 1
        return found

    def write(self, path: Path) -> None:
        """Write atomically. Raises StorageError."""
        write_tensors(path, {"keys": self.keys, "locations": self.locations})


def read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and locations of a file; none where it is missing or damaged."""
    nothing = np.empty((0, KEY_BYTES), np.uint8), np.empty(0, np.int64)
    try:
        stored = TensorFile(path)
        if not stored.intact():
            return nothing
        keys, locations = stored["keys"], stored["locations"]
    except (IntegrityError, KeyError):
        return nothing
    if keys.shape != (len(locations), KEY_BYTES) or locations.dtype != np.int64:
        return nothing
    return keys, locations
