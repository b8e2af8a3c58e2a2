"""Shards: safetensors files of at most a few megabytes, whole or absent, read in windows.

A shard's header is padded to one page, so that its size alone tells how many samples it holds and
where each of them is. Reads are `pread` calls into the caller's arrays: nothing is mapped, and
memory depends on what is asked for and not on the shards. The header carries a CRC-32 over the
data; it is compared before a process first reads from the shard, and a damaged one is set aside.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import zlib
from pathlib import Path

import numpy as np

from edgeladder.core.errors import IntegrityError, StorageError
from edgeladder.core.files import replacing
from edgeladder.core.tensors import CHECKSUM, encode_header
from edgeladder.runtime.cache.layout import KEY_BYTES, Field, Layout

HEADER_BYTES = 4096
SUFFIX = ".safetensors"
ROW_BITS = 20  # a location is shard << ROW_BITS | row
DAMAGED = ".damaged"  # after the name of a shard that was set aside
_OPEN_SHARDS = 32
_CHECKED_BYTES = 1 << 16  # at a time


def shard_path(folder: Path, shard: int) -> Path:
    """The file of shard number `shard`."""
    return folder / f"{shard:08d}{SUFFIX}"


def shard_header(layout: Layout, count: int, check: int | None) -> bytes:
    """The first page of a shard of `count` samples: safetensors' length and JSON, padded.

    Args:
        check: CRC-32 of the data after it; None for shards written before there was one.
    """
    metadata = {"layout": layout.name}
    if check is not None:
        metadata[CHECKSUM] = str(check)
    fields = ((field.name, field.dtype, (count, *field.shape)) for field in layout.fields)
    try:
        return encode_header(fields, metadata, HEADER_BYTES)
    except ValueError as error:
        raise StorageError(f"too many kinds of taps for a shard: {error}") from None


def write_shard(
    folder: Path, shard: int, layout: Layout, columns: dict[str, list[np.ndarray]], count: int
) -> Path:
    """Write one shard atomically; `columns` holds each field's arrays in order.

    Raises:
        StorageError: the disk is full; what was written before stands.
    """
    path = shard_path(folder, shard)
    check = 0
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        stream.seek(HEADER_BYTES)
        for field in layout.fields:
            for block in columns[field.name]:
                data = np.ascontiguousarray(block, field.dtype).data
                check = zlib.crc32(data, check)
                stream.write(data)
        stream.seek(0)
        stream.write(shard_header(layout, count, check))
    return path


def shard_count(layout: Layout, size: int) -> int | None:
    """Samples in a shard of `size` bytes; None when no whole number of them fits."""
    count, rest = divmod(size - HEADER_BYTES, layout.sample_bytes)
    return count if count > 0 and rest == 0 else None


class ShardReader:
    """Reads samples by location from a folder of shards."""

    def __init__(self, folder: Path, layout: Layout):
        self.folder = folder
        self.layout = layout
        self._files: collections.OrderedDict[int, tuple[int, int]] = collections.OrderedDict()
        self._checked: set[int] = set()

    def read(
        self, locations: np.ndarray, field: Field, out: np.ndarray | None = None
    ) -> np.ndarray:
        """One field of the samples at `locations` (n,) int64: (n, *field.shape), in their order.

        Args:
            out: filled and returned instead of a new array, where given.

        Raises:
            IntegrityError: a shard is missing, was cut short, or is damaged.
        """
        if out is None:
            out = np.empty((len(locations), *field.shape), field.dtype)
        if not len(locations):
            return out
        before = self.layout.fields[: self.layout.fields.index(field)]
        skipped = sum(other.sample_bytes for other in before)
        flat = out.reshape(len(locations), -1).view(np.uint8)
        starts = np.flatnonzero(np.diff(locations) != 1) + 1  # runs of neighbours: one read each
        bounds = [0, *starts.tolist(), len(locations)]
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            shard, row = divmod(int(locations[start]), 1 << ROW_BITS)
            descriptor, count = self._open(shard)
            offset = HEADER_BYTES + skipped * count + field.sample_bytes * row
            block = flat[start:stop].reshape(-1)
            if os.preadv(descriptor, [block.data], offset) != block.nbytes:
                raise self._cut(shard)
        return out

    def keys(self, shard: int) -> np.ndarray:
        """All keys of a shard, (n, KEY_BYTES) uint8; empty if it is none of this layout."""
        empty = np.empty((0, KEY_BYTES), np.uint8)
        try:
            _, count = self._open(shard)
        except IntegrityError:
            return empty
        return self.read((shard << ROW_BITS) + np.arange(count), self.layout.fields[0])

    def _open(self, shard: int) -> tuple[int, int]:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        try:
            path = shard_path(self.folder, shard)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._cut(shard) from None
        count = shard_count(self.layout, os.fstat(descriptor).st_size)
        if count is None:
            os.close(descriptor)
            raise self._cut(shard)
        if shard not in self._checked:
            if not self._intact(descriptor, count):
                os.close(descriptor)
                raise self._damaged(path)
            self._checked.add(shard)
        self._files[shard] = (descriptor, count)
        if len(self._files) > _OPEN_SHARDS:
            _, (oldest, _) = self._files.popitem(last=False)
            os.close(oldest)
        return descriptor, count

    def _cut(self, shard: int) -> IntegrityError:
        return IntegrityError(
            "a cache shard is missing or cut short",
            where=str(shard_path(self.folder, shard)),
            remedy="run `edgeladder precompute` again: it computes what is missing",
        )

    def _intact(self, descriptor: int, count: int) -> bool:
        """Whether a shard is as written; one without a checksum is taken as it is."""
        page = os.pread(descriptor, HEADER_BYTES, 0)
        expected = _stored_check(page)
        if page != shard_header(self.layout, count, expected):
            return False
        if expected is None:
            return True
        block, check, offset = bytearray(_CHECKED_BYTES), 0, HEADER_BYTES
        while got := os.preadv(descriptor, [block], offset):
            check = zlib.crc32(memoryview(block)[:got], check)
            offset += got
        return check == expected

    def _damaged(self, path: Path) -> IntegrityError:
        """Set a shard aside, so that the next precompute finds its samples missing."""
        with contextlib.suppress(OSError):  # a cache that is read-only to us stays as it is
            os.replace(path, f"{path}{DAMAGED}")
        return IntegrityError(
            "a cache shard is damaged: its checksum is not the one it was written with",
            where=str(path),
            remedy=f"it is set aside as {path.name}{DAMAGED}; run the same command, or "
            "`edgeladder precompute`, again: it computes these samples anew. Damage that returns "
            "means a failing disk or memory card",
        )

    def close(self) -> None:
        """Close the open shards."""
        while self._files:
            _, (descriptor, _) = self._files.popitem()
            os.close(descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()


def _stored_check(page: bytes) -> int | None:
    """The checksum a header tells; None if it tells none, or is no header."""
    try:
        return int(json.loads(page[8:])["__metadata__"][CHECKSUM])
    except (ValueError, KeyError, TypeError):
        return None
