"""Shards: safetensors files of at most a few megabytes, whole or absent, read in windows.

A shard's header is padded to one page, so that its size alone tells how many samples it holds and
where each of them is. Reads are `pread` calls into the caller's arrays: nothing is mapped, and
memory depends on what is asked for and not on the shards.

Every sample carries a CRC-32 of each of its fields, and every read compares those of the bytes that
it read: a shard that is damaged while a run uses it is noticed at the step that would have learnt
from it. The header has a checksum over the whole file besides, by which all damaged shards are
found at once. They are set aside, and their samples computed anew.
"""

from __future__ import annotations

import collections
import contextlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeladder.core import disk
from edgeladder.core.errors import IntegrityError, StorageError
from edgeladder.core.files import replacing
from edgeladder.core.tensors import encode_header, is_intact, with_checksum
from edgeladder.runtime.cache.layout import KEY_BYTES, Field, Layout

HEADER_BYTES = 4096
SUFFIX = ".safetensors"
ROW_BITS = 20  # a location is shard << ROW_BITS | row
DAMAGED = ".damaged"  # after the name of a shard that was set aside
_OPEN_SHARDS = 32


def shard_path(folder: Path, shard: int) -> Path:
    """The file of shard number `shard`."""
    return folder / f"{shard:08d}{SUFFIX}"


def shard_header(layout: Layout, count: int) -> bytes:
    """The first page of a shard of `count` samples, padded, its checksum still zeros."""
    fields = ((field.name, field.dtype, (count, *field.shape)) for field in layout.fields)
    try:
        return encode_header(fields, {"layout": layout.name}, HEADER_BYTES)
    except ValueError as error:
        raise StorageError(f"too many kinds of taps for a shard: {error}") from None


def row_checks(layout: Layout, stored: dict[str, np.ndarray]) -> np.ndarray:
    """A CRC-32 of every field of n samples, (n, fields) uint32, in the layout's order."""
    columns = [
        _rows(np.ascontiguousarray(stored[field.name], field.dtype)) for field in layout.fields[:-1]
    ]
    return np.array([[zlib.crc32(row) for row in rows] for rows in columns], np.uint32).T


def _rows(values: np.ndarray) -> np.ndarray:
    """(n, ..) contiguous -> the bytes of each sample, (n, bytes) uint8, in the same memory."""
    return values.reshape(len(values), -1).view(np.uint8)


def write_shard(
    folder: Path, shard: int, layout: Layout, columns: dict[str, list[np.ndarray]], count: int
) -> Path:
    """Write one shard atomically; `columns` holds each field's arrays in order.

    Raises:
        StorageError: the disk is full; what was written before stands.
    """
    path = shard_path(folder, shard)
    with replacing(path) as temporary, disk.create(temporary) as stream:
        header = shard_header(layout, count)
        checksum = zlib.crc32(header)
        stream.seek(HEADER_BYTES)
        for field in layout.fields:
            for block in columns[field.name]:
                data = np.ascontiguousarray(block, field.dtype).data
                checksum = zlib.crc32(data, checksum)
                stream.write(data)
        stream.seek(0)
        stream.write(with_checksum(header, checksum))
    return path


def shard_count(layout: Layout, size: int) -> int | None:
    """Samples in a shard of `size` bytes; None when no whole number of them fits."""
    count, rest = divmod(size - HEADER_BYTES, layout.sample_bytes)
    return count if count > 0 and rest == 0 else None


@dataclass(frozen=True)
class _Open:
    """A shard that is open for reading."""

    descriptor: int
    count: int  # samples
    checks: np.ndarray  # (count, fields): a CRC-32 of each field of each sample


class ShardReader:
    """Reads samples by location from a folder of shards, and believes none of them unchecked."""

    def __init__(self, folder: Path, layout: Layout):
        self.folder = folder
        self.layout = layout
        self.companions: list[ShardReader] = []  # looked through as well once damage is found
        self._files: collections.OrderedDict[int, _Open] = collections.OrderedDict()
        self._starts = _starts(layout)

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
        column, flat = self.layout.fields.index(field), _rows(out)
        starts = np.flatnonzero(np.diff(locations) != 1) + 1  # runs of neighbours: one read each
        bounds = [0, *starts.tolist(), len(locations)]
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            shard, row = divmod(int(locations[start]), 1 << ROW_BITS)
            opened = self._open(shard)
            rows = flat[start:stop]
            self._fill(opened, shard, column, row, rows)
            checks = opened.checks[row : row + len(rows), column].tolist()
            # what was read is what is checked: bytes that change while a run goes on are seen too
            if [zlib.crc32(values) for values in rows] != checks:
                raise self._damaged(shard)
        return out

    def _fill(self, opened: _Open, shard: int, column: int, row: int, rows: np.ndarray) -> None:
        """Bytes of a field of neighbouring samples, from `row` on, into `rows` (n, bytes)."""
        size = self.layout.fields[column].sample_bytes
        offset = HEADER_BYTES + self._starts[column] * opened.count + size * row
        block = rows.reshape(-1)
        if os.preadv(opened.descriptor, [block.data], offset) != block.nbytes:
            raise self._cut(shard)

    def keys(self, shard: int) -> np.ndarray:
        """All keys of a shard, (n, KEY_BYTES) uint8; empty if it is none of this layout."""
        try:
            count = self._open(shard).count
            return self.read((shard << ROW_BITS) + np.arange(count), self.layout.fields[0])
        except IntegrityError:
            return np.empty((0, KEY_BYTES), np.uint8)

    def _open(self, shard: int) -> _Open:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        path = shard_path(self.folder, shard)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise self._cut(shard) from None
        count = shard_count(self.layout, os.fstat(descriptor).st_size)
        if count is None:
            os.close(descriptor)
            raise self._cut(shard)
        page = os.pread(descriptor, HEADER_BYTES, 0)
        if with_checksum(page, 0) != shard_header(self.layout, count):
            os.close(descriptor)
            raise self._damaged(shard)
        checks = np.empty((count, *self.layout.fields[-1].shape), np.uint32)
        opened = self._files[shard] = _Open(descriptor, count, checks)
        self._fill(opened, shard, len(self.layout.fields) - 1, 0, _rows(checks))
        if len(self._files) > _OPEN_SHARDS:
            _, oldest = self._files.popitem(last=False)
            os.close(oldest.descriptor)
        return opened

    def _cut(self, shard: int) -> IntegrityError:
        return IntegrityError(
            "a cache shard is missing or cut short",
            where=str(shard_path(self.folder, shard)),
            remedy="run `edgeladder precompute` again: it computes what is missing",
        )

    def _damaged(self, shard: int) -> IntegrityError:
        """Set aside this shard and all others that are damaged, for the next precompute to heal.

        One failing block seldom comes alone, and each round of a run that stops, heals and goes
        on would find but one.
        """
        path = shard_path(self.folder, shard)
        found = [path, *self._others(path)]
        for reader in self.companions:
            found += reader._others()
        for damaged in found:
            with contextlib.suppress(OSError):  # a cache that is read-only to us stays as it is
                disk.replace(damaged, Path(f"{damaged}{DAMAGED}"))
        many = f"{len(found)} cache shards are damaged: their checksums are not the ones they were"
        return IntegrityError(
            f"{many} written with"
            if len(found) > 1
            else "a cache shard is damaged: its checksum is not the one it was written with",
            where=", ".join(map(str, found)),
            remedy=f"set aside under their names with {DAMAGED} after them; run the same command, "
            "or `edgeladder precompute`, again: it computes these samples anew. Damage that "
            "returns means a failing disk or memory card",
        )

    def _others(self, *known: Path) -> list[Path]:
        """Damaged shards of the folder beside those that are known."""
        paths = sorted(self.folder.glob(f"*{SUFFIX}"))
        shards = [path for path in paths if path.name.removesuffix(SUFFIX).isdigit()]
        return [path for path in shards if path not in known and not is_intact(path)]

    def close(self) -> None:
        """Close the open shards."""
        while self._files:
            _, opened = self._files.popitem()
            os.close(opened.descriptor)

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()


def _starts(layout: Layout) -> list[int]:
    """Bytes of a sample's fields before each."""
    starts = [0]
    for field in layout.fields[:-1]:
        starts.append(starts[-1] + field.sample_bytes)
    return starts
