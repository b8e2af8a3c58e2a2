"""The activation cache: each picture and view, and each class's prompts, computed once.

    cache/image-<digest>-fp16/00000000.safetensors ..   shards
                              index.safetensors         keys and places of all samples in them
    cache/work-<pid>/                                   hidden states of a running precompute

Samples are found by content: the hash of the picture's bytes and the view, in a store named after
the tower, its cut and its preprocessing. A shard is whole or absent and carries its own keys, so
the index can always be made again; a kill at any moment loses at most what was not yet flushed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core import disk
from edgeladder.core.bundle import Side
from edgeladder.core.cache_use import share_cache
from edgeladder.core.errors import ConfigError, IntegrityError, StorageError
from edgeladder.core.files import storage_errors
from edgeladder.core.locks import Tell, take_lock
from edgeladder.runtime.cache.index import KeyIndex, read_index
from edgeladder.runtime.cache.layout import (
    CHECKS,
    KEY_BYTES,
    KEYS,
    Layout,
    TapDtype,
    TapField,
    from_int8,
)
from edgeladder.runtime.cache.shards import (
    ROW_BITS,
    SUFFIX,
    ShardReader,
    row_checks,
    shard_count,
    write_shard,
)
from edgeladder.runtime.float16 import Float16Block

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.manifest import TapGroup

SHARD_BYTES = 4 << 20  # held in memory until written; a power cut costs at most this
INDEX = "index" + SUFFIX
_LOCK = ".lock"
_MERGE_SAMPLES = 4096
_BLOCK_BYTES = 256 << 10  # of stored taps converted at a time: stays in a small core's cache


def sample_key(content_digest: bytes, view: int = 0, version: str = "", *, scale: int = 1) -> bytes:
    """A sample's key: its content's SHA-256, and the view with its augmentation's version.

    Args:
        scale: by what a picture's sides were divided while it was decoded: it gives slightly
            other activations than the whole one, and is never taken for it.
    """
    if scale > 1:
        content_digest += f"1:{scale} ".encode()
    if view:
        content_digest += f"{view}/{version}".encode()
    return hashlib.sha256(content_digest).digest()[:KEY_BYTES]


class ActivationCache:
    """One store: samples of one side of one backbone."""

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        *,
        writable: bool,
        shard_bytes: int,
        tell: Tell | None = None,
    ):
        self.folder = folder
        self.layout = layout
        self.reader = ShardReader(folder, layout)
        self.shard_bytes = shard_bytes
        self._writable = writable
        self._pending: dict[str, list[np.ndarray]] = {}
        self._pending_keys: dict[bytes, None] = {}
        self._index = KeyIndex()
        self._recent: dict[bytes, int] = {}  # flushed, not yet in the sorted arrays
        self._lock_descriptor: int | None = None
        self._use_descriptor = share_cache(folder.parent, tell)
        self._blocks: dict[str, Float16Block] = {}  # by field: where taps are converted
        if writable:
            self._lock(tell)
            self._sweep()
        self._load_index()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        bundle: Bundle,
        side: Side,
        dtype: TapDtype = "fp16",
        *,
        writable: bool = False,
        shard_bytes: int = SHARD_BYTES,
        tell: Tell | None = None,
        arithmetic: str = "",
    ) -> ActivationCache:
        """Open the store of a bundle's tower below a cache folder, made if `writable`.

        Args:
            tell: told what is waited for, where another process is writing to it.
            arithmetic: of the provider whose results it holds; empty: the CPU's.

        Raises:
            ConfigError: another process is writing to it, and goes on doing so.
            StorageError: the folder cannot be made.
        """
        layout = Layout(bundle, side, dtype, arithmetic)
        store = Path(folder) / layout.name
        if writable:
            with storage_errors(store):
                disk.make_folders(store)
        return cls(store, layout, writable=writable, shard_bytes=shard_bytes, tell=tell)

    def _lock(self, tell: Tell | None) -> None:
        with storage_errors(self.folder):
            self._lock_descriptor = os.open(
                self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
            )
        if not take_lock(self._lock_descriptor, f"the cache {self.folder}", tell):
            self.abandon()
            raise ConfigError(
                "another process is writing to this cache",
                where=str(self.folder),
                remedy="wait for it to end, or choose another folder with --cache",
            )

    def _sweep(self) -> None:
        """Remove what a killed writer left behind."""
        for path in self.folder.glob(".*.tmp"):
            disk.unlink(path)

    # ---- index

    def _load_index(self) -> None:
        """Keys and locations, sorted by key, from the index and from shards it does not know."""
        counts = self._shards()
        keys, locations = read_index(self.folder / INDEX)
        shards, rows = locations >> ROW_BITS, locations & ((1 << ROW_BITS) - 1)
        known = np.unique(shards)
        # a shard counts as indexed only with all its rows, at the size it has now
        indexed = [
            shard
            for shard in known.tolist()
            if counts.get(shard) == int(np.count_nonzero(shards == shard))
        ]
        keep = np.isin(shards, indexed) & (rows >= 0)
        found_keys, found_locations = [keys[keep]], [locations[keep]]
        for shard in sorted(set(counts) - set(indexed)):
            shard_keys = self.reader.keys(shard)
            found_keys.append(shard_keys)
            found_locations.append((shard << ROW_BITS) + np.arange(len(shard_keys)))
        self._next_shard = max(counts, default=-1) + 1
        self._index.set(np.concatenate(found_keys), np.concatenate(found_locations))
        self._stale = len(indexed) != len(counts) or len(known) != len(counts)

    def _read_shards(self) -> None:
        """Keys and locations from the shards alone."""
        shards = [(shard, self.reader.keys(shard)) for shard in sorted(self._shards())]
        keys = [np.empty((0, KEY_BYTES), np.uint8), *(keys for _, keys in shards)]
        places = [(shard << ROW_BITS) + np.arange(len(keys)) for shard, keys in shards]
        self._index.set(np.concatenate(keys), np.concatenate([np.empty(0, np.int64), *places]))
        self._recent, self._stale = {}, True

    def _shards(self) -> dict[int, int]:
        """Sample count of every whole shard by its number."""
        counts: dict[int, int] = {}
        if not self.folder.is_dir():
            return counts
        for entry in os.scandir(self.folder):
            stem = entry.name.removesuffix(SUFFIX)
            if stem.isdigit() and entry.name != stem:
                count = shard_count(self.layout, entry.stat().st_size)
                if count is not None:
                    counts[int(stem)] = count
                elif self._writable:  # only a damaged disk leaves a shard like this
                    disk.unlink(Path(entry.path))
        return counts

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Locations (n,) int64 of keys (n, KEY_BYTES) uint8; -1 where none is written yet.

        A location is believed only where the shard has the same key there: an index that went
        with other shards, from a copy made at another time, is made again from these.

        Raises:
            IntegrityError: a shard is damaged, and the cache was opened for reading.
        """
        self._merge()
        return self._checked(keys)

    def _checked(self, keys: np.ndarray) -> np.ndarray:
        found = self._index.search(keys)
        if self._agrees(keys, found):
            return found
        self._read_shards()
        return self._index.search(keys)

    def _agrees(self, keys: np.ndarray, locations: np.ndarray) -> bool:
        """Whether the shards have these keys at these places."""
        order = np.argsort(locations, kind="stable")
        order = order[locations[order] >= 0]
        try:
            there = self.reader.read(locations[order], self.layout.fields[0])
        except IntegrityError:
            if self._writable:
                return False  # set aside; what it held is computed again
            raise
        return bool((there == keys.reshape(-1, KEY_BYTES)[order]).all())

    def __contains__(self, key: bytes) -> bool:
        if key in self._pending_keys or key in self._recent:
            return True
        return bool(self._checked(np.frombuffer(key, np.uint8))[0] >= 0)

    def __len__(self) -> int:
        return self.flushed_count + len(self._pending_keys)

    @property
    def flushed_count(self) -> int:
        """Samples on disk, that a power cut cannot take."""
        return len(self._index) + len(self._recent)

    def forget_index(self) -> None:
        """Free the keys; locations already found stay valid. For a trainer that counts bytes."""
        self._recent = {}
        self._index = KeyIndex()

    # ---- writing

    def put(self, keys: list[bytes], outputs: dict[str, np.ndarray]) -> None:
        """Add samples from a tower's outputs by name, (n, ..) each; full shards are written.

        Raises:
            StorageError: the disk is full; shards written before stand.
        """
        if not self._writable:
            raise StorageError("the cache was opened for reading", where=str(self.folder))
        places = {key: index for index, key in enumerate(keys) if key not in self}
        fresh = sorted(places.values())
        if not fresh:
            return
        stored = self.layout.pack({name: array[fresh] for name, array in outputs.items()})
        joined = np.frombuffer(b"".join(keys[index] for index in fresh), np.uint8)
        stored[KEYS] = joined.reshape(-1, KEY_BYTES)
        stored[CHECKS] = row_checks(self.layout, stored)
        room = max(1, self.shard_bytes // self.layout.sample_bytes)
        start = 0
        while start < len(fresh):
            stop = min(len(fresh), start + room - len(self._pending_keys))
            for name, array in stored.items():
                self._pending.setdefault(name, []).append(array[start:stop])
            self._pending_keys.update(dict.fromkeys(keys[index] for index in fresh[start:stop]))
            if len(self._pending_keys) == room:
                self.flush()
            start = stop

    def flush(self) -> None:
        """Write what is pending as one shard; after this it survives a power cut.

        Raises:
            StorageError: the disk is full; shards written before stand.
        """
        count = len(self._pending_keys)
        if not count:
            return
        write_shard(self.folder, self._next_shard, self.layout, self._pending, count)
        for row, key in enumerate(np.concatenate(self._pending[KEYS])):
            self._recent[key.tobytes()] = (self._next_shard << ROW_BITS) + row
        self._next_shard += 1
        self._pending, self._pending_keys, self._stale = {}, {}, True
        if len(self._recent) >= _MERGE_SAMPLES:
            self._merge()

    def _merge(self) -> None:
        """Move the keys of recent flushes into the sorted arrays."""
        if not self._recent:
            return
        keys = np.frombuffer(b"".join(self._recent), np.uint8).reshape(-1, KEY_BYTES)
        locations = np.fromiter(self._recent.values(), np.int64, len(self._recent))
        self._recent = {}
        self._index.add(keys, locations)

    def close(self) -> None:
        """Flush, write the index and let other writers in.

        Raises:
            StorageError: the disk is full; shards written before stand.
        """
        try:
            if self._writable:
                self.flush()
                if self._stale:
                    self._write_index()
        finally:
            self.abandon()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Close at the end; on an error inside, too, keeping what can still be written."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(StorageError):
                self.close()
            raise
        self.close()

    def abandon(self) -> None:
        """Let go without writing anything more; what is not flushed is lost."""
        self._pending, self._pending_keys = {}, {}
        self.reader.close()
        for descriptor in (self._lock_descriptor, self._use_descriptor):
            if descriptor is not None:
                os.close(descriptor)
        self._lock_descriptor = self._use_descriptor = None
        self._writable = False

    def _write_index(self) -> None:
        self._merge()
        self._index.write(self.folder / INDEX)
        self._stale = False

    # ---- reading

    def embeddings(self, locations: np.ndarray) -> np.ndarray:
        """L2-normalised embeddings, (n, D) float32."""
        return self.reader.read(locations, self.layout.embedding)

    def pre_embeddings(self, locations: np.ndarray) -> np.ndarray:
        """Embeddings before the projection, (n, W) float32.

        Raises:
            ConfigError: this tower has no projection.
        """
        if self.layout.embedding_pre is None:
            raise ConfigError(
                "this backbone has no embedding before a projection",
                where=self.layout.side,
                remedy="use a profile with ladder.project: false",
            )
        return self.reader.read(locations, self.layout.embedding_pre)

    def taps(self, locations: np.ndarray, group: TapGroup) -> np.ndarray:
        """The taps of a ladder's group: (L, T, n, W) float32, C-contiguous.

        Read and converted a few samples at a time, so that no more than the result and some
        hundred kilobytes are held.
        """
        field, places = self.layout.locate(list(group.taps))
        tokens, width = field.values.shape[1:]
        out = np.empty((len(places), tokens, len(locations), width), np.float32)
        step = self._block_samples(field)
        for start in range(0, len(locations), step):
            block = locations[start : start + step]
            out[:, :, start : start + step] = self._tap_block(block, field, places)
        return out

    def _block_samples(self, field: TapField) -> int:
        return max(1, _BLOCK_BYTES // field.values.sample_bytes)

    def _float16_block(self, field: TapField) -> Float16Block:
        name = field.values.name
        if name not in self._blocks:
            values = field.values.sample_bytes // 2
            self._blocks[name] = Float16Block(self._block_samples(field) * values)
        return self._blocks[name]

    def _tap_block(self, locations: np.ndarray, field: TapField, places: list[int]) -> np.ndarray:
        """(L, T, n, W) float32 of a few samples, in any memory order; valid until the next call."""
        whole = places == list(range(len(field.taps)))
        if field.scales is None:
            block = self._float16_block(field)
            count = len(locations) * block.float16.size // self._block_samples(field)
            shape = (len(locations), *field.values.shape)
            self.reader.read(locations, field.values, block.float16[:count].reshape(shape))
            block.convert()
            taps = block.float32[:count].reshape(shape)  # (n, L, T, W)
            return (taps if whole else taps[:, places]).transpose(1, 2, 0, 3)
        stored = self.reader.read(locations, field.values)
        stored = stored if whole else stored[:, places]
        scales = self.reader.read(locations, field.scales)
        taps = from_int8(stored, scales if whole else scales[:, places])
        return taps.transpose(1, 2, 0, 3)
