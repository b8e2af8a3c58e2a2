"""What of a cache can go: all of it can be computed again, and nothing else is touched.

In this order, each with its reason:

    left behind        hidden states of processes that are gone, damaged shards that were set aside
    another bundle     stores of towers that no bundle named here has (an accelerator's stay)
    not wanted         samples of pictures that are in no data set named here, and of old views
    over the limit     whole shards, those written longest ago first

Shards are whole or absent. One that holds samples of both kinds is written anew with those that
stay, before the old one goes: a kill between leaves them twice, which the store does not mind.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeladder.core import disk
from edgeladder.core.cache_use import cache_alone, lock_alone
from edgeladder.core.files import storage_errors
from edgeladder.runtime.cache.layout import CHECKS, Layout
from edgeladder.runtime.cache.shards import (
    DAMAGED,
    ROW_BITS,
    SUFFIX,
    ShardReader,
    row_checks,
    write_shard,
)
from edgeladder.runtime.cache.store import INDEX, SHARD_BYTES

_STORE = re.compile(r"(image|text)-[0-9a-f]{16}-(fp16|int8)(-\w+)?")
_SHARD = re.compile(r"\d+" + re.escape(SUFFIX))
LEFT, OTHER = "left behind", "of another bundle"
UNWANTED, OVER = "of no picture or view that is wanted", "over the limit"


@dataclass(frozen=True)
class StoreSize:
    """One store in a list."""

    name: str
    bytes: int
    shards: int
    written: float  # seconds since 1970, of its newest shard


@dataclass(frozen=True)
class Wanted:
    """What shall stay.

    Attributes:
        layouts: of stores that are known, by name.
        keys: of samples that are wanted in a store; a store that is not here stays whole.
        others: whether stores stay that are not known.
    """

    layouts: Mapping[str, Layout] = field(default_factory=dict)
    keys: Mapping[str, frozenset[bytes]] = field(default_factory=dict)
    others: bool = True


@dataclass(frozen=True)
class Removal:
    """What goes, or went, and why."""

    what: str  # below the cache
    bytes: int
    reason: str
    samples: int | None = None  # of a store that is thinned out


def store_sizes(folder: Path) -> list[StoreSize]:
    """Every store of a cache, the largest first."""
    found = []
    for place in _stores(folder):
        stats = [path.stat() for path in place.iterdir() if path.is_file()]
        found.append(
            StoreSize(
                name=place.name,
                bytes=sum(item.st_size for item in stats),
                shards=len(_shards(place)),
                written=max((item.st_mtime for item in stats), default=0.0),
            )
        )
    return sorted(found, key=lambda item: (-item.bytes, item.name))


def prune(
    folder: Path,
    wanted: Wanted = Wanted(),
    limit_bytes: int | None = None,
    *,
    dry_run: bool = False,
) -> list[Removal]:
    """Remove what is not wanted, and what is over the limit.

    Args:
        folder: the cache.
        wanted: what shall stay.
        limit_bytes: of all that is left; None: no limit.
        dry_run: only say what would go.

    Raises:
        ConfigError: a running job uses the cache.
        StorageError: it cannot be changed.
    """
    if dry_run:
        return list(_pruned(folder, wanted, limit_bytes, dry_run=True))
    with storage_errors(folder), cache_alone(folder), _writers_kept_out(folder):
        return list(_pruned(folder, wanted, limit_bytes, dry_run=False))


@contextlib.contextmanager
def _writers_kept_out(folder: Path) -> Iterator[None]:
    """Every store's own lock, which writers of earlier versions take alone."""
    with contextlib.ExitStack() as held:
        for place in _stores(folder):
            refusal = "a running job writes to this cache"
            held.enter_context(lock_alone(place, ".lock", refusal, "wait for it to end"))
        yield


def _pruned(
    folder: Path, wanted: Wanted, limit_bytes: int | None, *, dry_run: bool
) -> Iterator[Removal]:
    gone: set[Path] = set()
    thinned = 0
    for path in _left_behind(folder):
        files = [*path.glob("*.spill"), *path.glob("*.stage")] if path.is_dir() else [path]
        yield _removed(folder, path, files, LEFT, dry_run)
    for place in _stores(folder):
        if place.name not in wanted.layouts and not wanted.others and not _provided(place):
            gone.update(_of_store(place))
            yield _removed(folder, place, _of_store(place), OTHER, dry_run)
        elif place.name in wanted.keys:
            keys, layout = wanted.keys[place.name], wanted.layouts[place.name]
            found = _thin(place, layout, keys, dry_run=dry_run)
            if found is not None:
                thinned += found.bytes
                yield found
    if limit_bytes is None:
        return
    left = [path for place in _stores(folder) for path in _shards(place) if path not in gone]
    excess = sum(path.stat().st_size for path in left) - limit_bytes - (thinned if dry_run else 0)
    for path in sorted(left, key=lambda item: (item.stat().st_mtime, item)):
        if excess <= 0:
            return
        excess -= path.stat().st_size
        if not dry_run:
            disk.unlink(path.parent / INDEX)  # it is made again from the shards
        yield _removed(folder, path, [path], OVER, dry_run)


def _removed(folder: Path, what: Path, files: list[Path], reason: str, dry_run: bool) -> Removal:
    """Let files go, and the folder that they were all of."""
    size = sum(path.stat().st_size for path in files)
    whole = what.is_dir()
    if not dry_run:
        for path in files:
            disk.unlink(path)
        if whole:
            with contextlib.suppress(OSError):  # something else lies in it, which stays
                disk.remove_folder(what)
    return Removal(str(what.relative_to(folder)), size, reason)


def _thin(place: Path, layout: Layout, keys: frozenset[bytes], *, dry_run: bool) -> Removal | None:
    """Take samples out of a store that are not wanted; None where all are."""
    reader = ShardReader(place, layout)
    try:
        old, stay, samples = [], [], 0
        for path in _shards(place):
            shard = int(path.name.removesuffix(SUFFIX))
            there = reader.keys(shard)
            rows = [row for row, key in enumerate(there) if key.tobytes() in keys]
            if len(rows) == len(there):
                continue
            old.append(path)
            samples += len(there) - len(rows)
            stay.append((shard << ROW_BITS) + np.array(rows, np.int64))
        if not old:
            return None
        before = sum(path.stat().st_size for path in old)
        kept = np.concatenate(stay)
        if dry_run:
            return Removal(place.name, samples * layout.sample_bytes, UNWANTED, samples)
        after = _written_anew(place, layout, reader, kept)
    finally:
        reader.close()
    disk.unlink(place / INDEX)
    for path in old:
        disk.unlink(path)
    disk.fsync_directory(place)
    return Removal(place.name, before - after, UNWANTED, samples)


def _written_anew(place: Path, layout: Layout, reader: ShardReader, kept: np.ndarray) -> int:
    """Samples at these locations in shards of their own; bytes of those."""
    number = max(int(path.name.removesuffix(SUFFIX)) for path in _shards(place)) + 1
    room, size = max(1, SHARD_BYTES // layout.sample_bytes), 0
    for start in range(0, len(kept), room):
        block = kept[start : start + room]
        stored = {item.name: reader.read(block, item) for item in layout.fields[:-1]}
        stored[CHECKS] = row_checks(layout, stored)
        columns = {name: [values] for name, values in stored.items()}
        size += write_shard(place, number, layout, columns, len(block)).stat().st_size
        number += 1
    return size


def _stores(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.iterdir() if path.is_dir() and _STORE.fullmatch(path.name)
    )


def _provided(place: Path) -> bool:
    """Whether an accelerator filled it: which bundle it is of, its name alone does not tell."""
    found = _STORE.fullmatch(place.name)
    return found is not None and found[3] is not None


def _shards(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if _SHARD.fullmatch(path.name))


def _of_store(place: Path) -> list[Path]:
    """Files that a store consists of."""
    ours = [*_shards(place), place / INDEX, place / ".lock"]
    return [path for path in ours if path.is_file()]


def _left_behind(folder: Path) -> list[Path]:
    """Folders of hidden states whose process is gone, set-aside shards, unfinished files."""
    found = [
        path
        for path in folder.glob("work-*")
        if (owner := path.name.removeprefix("work-")).isdigit()
        and not Path(f"/proc/{owner}").exists()
    ]
    for place in _stores(folder):
        found += [*place.glob(f"*{DAMAGED}"), *place.glob(".*.tmp")]
    return sorted(found)
