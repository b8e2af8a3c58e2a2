"""Pictures that are there twice: by their bytes first, then by what the tower and their light say.

Candidates are pairs of pictures whose embeddings (centred, at unit length) point nearly the same
way; a pair is a near-duplicate where a perceptual hash agrees as well: 64 bits of which neighbour
on a 9 x 8 grid is brighter (difference hash). Crops, scaling, and other compression keep both;
two shots of one kind of thing keep the first alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.review import Duplicate, Place

if TYPE_CHECKING:
    from edgeladder.runtime.pictures.dataset import Picture

Array = np.ndarray

CANDIDATE_COSINE = 0.9  # of centred embeddings: below, nothing is looked at
HASH_BITS = 12  # of 64 that may differ between two pictures of one scene
_BLOCK = 512  # rows compared at a time
_MOST_CANDIDATES = 20_000  # pairs whose light is compared: decoding is what costs


@dataclass(frozen=True)
class Found:
    """Groups of two and more."""

    groups: list[Duplicate]  # across classes or splits, classes first
    repeated: int  # pictures that are there again within one class and side


def find_duplicates(
    pictures: Sequence[Picture],
    sides: Sequence[str],
    keys: Array,
    embeddings: Callable[[Array], Array],
    light: Callable[[int], Array | None],
    on_step: Callable[[], None] = lambda: None,
) -> Found:
    """Groups of equal and nearly equal pictures.

    Args:
        pictures: n labelled ones.
        sides: of each, as it is trained or tested.
        keys: (n, K) uint8, equal where the bytes are.
        embeddings: rows -> (m, D) at unit length.
        light: row -> (8, 9) grey values of a picture; None where it cannot be read.
        on_step: called between parts of the work; may raise to stop.
    """
    same = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
    firsts = np.unique(same, return_index=True)[1]  # one of each content
    pairs = _similar(embeddings, firsts, light, on_step)
    parent = {int(same[row]): int(same[row]) for row in firsts}

    def root(content: int) -> int:
        while parent[content] != content:
            content = parent[content]
        return content

    lowest: dict[int, float] = {}
    for left, right, cosine in pairs:
        one, other = root(int(same[left])), root(int(same[right]))
        low = min(lowest.get(one, 1.0), lowest.get(other, 1.0), cosine)
        parent[other] = one
        lowest[one] = low
    members: dict[int, list[int]] = {}
    for row in range(len(pictures)):
        members.setdefault(root(int(same[row])), []).append(row)
    groups, repeated = [], 0
    for group, rows in members.items():
        if len(rows) < 2:
            continue
        made = _duplicate(rows, pictures, sides, lowest.get(group))
        if made.across_classes or made.across_splits:
            groups.append(made)
        else:
            repeated += len(rows) - 1
    groups.sort(key=lambda item: (not item.across_classes, -item.similarity, item.pictures[0].path))
    return Found(groups, repeated)


def _duplicate(
    rows: list[int], pictures: Sequence[Picture], sides: Sequence[str], lowest: float | None
) -> Duplicate:
    places = [
        Place(path=pictures[row].path, label=pictures[row].label, split=sides[row]) for row in rows
    ]
    return Duplicate(
        kind="identical" if lowest is None else "similar",
        similarity=1.0 if lowest is None else round(lowest, 4),
        across_classes=len({place.label for place in places}) > 1,
        across_splits=len({place.split for place in places}) > 1,
        pictures=places,
    )


def _similar(
    embeddings: Callable[[Array], Array],
    rows: Array,
    light: Callable[[int], Array | None],
    on_step: Callable[[], None],
) -> list[tuple[int, int, float]]:
    """Pairs of nearly equal pictures among `rows`, with their cosine."""
    if len(rows) < 2:
        return []
    centre = np.mean([embeddings(part).mean(axis=0) for part in _parts(rows)], axis=0)

    def directions(part: Array) -> Array:
        moved = embeddings(part) - centre
        length = np.linalg.norm(moved, axis=1, keepdims=True)
        return np.asarray(moved / np.maximum(length, 1e-12), np.float32)

    candidates: list[tuple[float, int, int]] = []
    parts = _parts(rows)
    for index, part in enumerate(parts):
        left = directions(part)
        for other in parts[index:]:
            cosines = left @ directions(other).T
            for one, two in np.argwhere(cosines >= CANDIDATE_COSINE):
                if part[one] < other[two]:
                    pair = int(part[one]), int(other[two])
                    candidates.append((float(cosines[one, two]), *pair))
            on_step()
    candidates.sort(key=lambda item: -item[0])
    hashes: dict[int, Array | None] = {}
    found = []
    for cosine, one, two in candidates[:_MOST_CANDIDATES]:
        for row in (one, two):
            if row not in hashes:
                grey = light(row)
                hashes[row] = None if grey is None else difference_hash(grey)
                on_step()
        first, second = hashes[one], hashes[two]
        if first is not None and second is not None and (first != second).sum() <= HASH_BITS:
            found.append((one, two, cosine))
    return found


def _parts(rows: Array) -> list[Array]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]


def difference_hash(grey: Array) -> Array:
    """64 bits of an (8, 9) grid of grey values: whether each is brighter than its left neighbour.

    Differences within two grey levels are noise of a flat picture and count as not brighter.
    """
    return np.asarray(np.diff(np.asarray(grey, np.int64), axis=1) > 2).reshape(-1)
