"""Which unlabelled pictures to label next.

Few labels teach most where they stand for many pictures. So the pictures, labelled ones too, are
put into as many clusters as there will be labels (k-means on centred activations), and of each
cluster without a label its most typical picture is taken: the one nearest to its neighbours
(TypiClust, arXiv:2202.02794). Once there are labels enough for a run to know what it does not, only
the pictures that it is least sure of are put into clusters (margin between its two most probable
classes, Scheffer et al. 2001).

Activations are projected at random to 256 numbers first, which keeps distances (Johnson and
Lindenstrauss, 1984) and makes a picture a kilobyte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeladder.runtime.heads.kernel import squared_distances

Array = np.ndarray

WIDTH = 256  # numbers a picture is compared by
CENTRING = 0.7  # share of the mean that is taken away, as heads do
NEIGHBOURS = 20  # within its cluster, by which a picture is typical
ENOUGH = 2  # labels a class on average: with fewer, covering teaches more than asking a run
UNCERTAIN = 5  # times as many as are wanted: the least sure ones, of which some are taken
_RESTARTS, _ROUNDS = 3, 20  # of k-means
_BLOCK = 1024  # rows compared at a time
_TYPICAL = 400  # members of a cluster that are compared with each other


@dataclass(frozen=True)
class Chosen:
    """Rows among the unlabelled, the one that stands for most first."""

    rows: Array
    stands_for: Array  # pictures of its cluster


def reduced(features: Callable[[Array], Array], count: int, width: int, seed: int = 0) -> Array:
    """Pictures to compare: (n, WIDTH) float32 at unit length, centred.

    Args:
        features: rows -> (m, width).
        count: n.
        width: of the features.
        seed: of the projection.
    """
    generator = np.random.default_rng(seed)
    few = min(WIDTH, width)
    projection = generator.standard_normal((width, few)).astype(np.float32) / np.sqrt(few)
    rows = np.empty((count, few), np.float32)
    for start in range(0, count, _BLOCK):
        part = np.arange(start, min(start + _BLOCK, count))
        rows[part] = features(part).astype(np.float32) @ projection
    rows -= CENTRING * rows.mean(axis=0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return rows


def choose(
    unlabelled: Array,
    labelled: Array,
    count: int,
    *,
    sure: Array | None = None,
    seed: int = 0,
    on_step: Callable[[], None] = lambda: None,
) -> Chosen:
    """Choose pictures to label.

    Args:
        unlabelled, labelled: (n, D) and (m, D) as `reduced` gives them together.
        count: how many; at most n.
        sure: (n,) margin of a run's two most probable classes; None: no run.
        seed: of the clusters' starts.
        on_step: called between rounds; may raise to stop.
    """
    count = min(count, len(unlabelled))
    among = np.arange(len(unlabelled))
    fixed = labelled
    if sure is not None and len(unlabelled) > UNCERTAIN * count:
        # labelled pictures have done what they can: who is unsure now is so beside them
        among, fixed = np.argsort(sure, kind="stable")[: UNCERTAIN * count], labelled[:0]
    rows = unlabelled[among]
    centres = _clusters(rows, fixed, count, seed, on_step)
    owner = _nearest(rows, np.concatenate([fixed, centres]))[0] - len(fixed)
    chosen, sizes = [], []
    for cluster in range(len(centres)):
        members = np.flatnonzero(owner == cluster)
        if len(members):
            chosen.append(int(members[_most_typical(rows[members])]))
            sizes.append(len(members))
        on_step()
    order = np.argsort(-np.array(sizes, np.int64), kind="stable")
    picked, stands_for = np.array(chosen, np.int64)[order], np.array(sizes, np.int64)[order]
    if len(picked) < count:  # clusters without a member, or all near a label: what is farthest
        rest = _farthest(rows, np.concatenate([fixed, rows[picked]]), picked, count - len(picked))
        picked = np.concatenate([picked, rest])
        stands_for = np.concatenate([stands_for, np.ones(len(rest), np.int64)])
    return Chosen(among[picked], stands_for)


def _clusters(
    rows: Array, fixed: Array, count: int, seed: int, on_step: Callable[[], None]
) -> Array:
    """Centres (count, D) of k-means beside centres that stay; the best of a few starts."""
    best: tuple[float, Array] | None = None
    for restart in range(_RESTARTS):
        generator = np.random.default_rng([seed, restart])
        centres = _start(rows, fixed, count, generator)
        cost = np.inf
        for _ in range(_ROUNDS):
            owner, distance = _nearest(rows, np.concatenate([fixed, centres]))
            on_step()
            before, cost = cost, float(distance.sum())
            if best is not None and cost > 2 * best[0]:
                break
            centres = _means(rows, owner - len(fixed), centres)
            if before - cost < 1e-4 * cost:
                break
        if best is None or cost < best[0]:
            best = cost, centres
    assert best is not None  # _RESTARTS is not 0
    return best[1]


def _start(rows: Array, fixed: Array, count: int, generator: np.random.Generator) -> Array:
    """Greedy k-means++ (Arthur and Vassilvitskii, 2007): of a few draws the one that helps most."""
    chosen: list[int] = []
    if len(fixed):
        distance = _nearest(rows, fixed)[1]
    else:
        chosen.append(int(generator.integers(len(rows))))
        distance = squared_distances(rows, rows[chosen])[:, 0]
    tries = 2 + int(np.log(count + 1))
    while len(chosen) < count:
        total = float(distance.sum())
        chance = distance / total if total > 1e-9 else np.full(len(rows), 1 / len(rows))
        drawn = generator.choice(len(rows), tries, p=chance)
        closer = np.minimum(distance[:, None], squared_distances(rows, rows[drawn]))
        best = int(closer.sum(axis=0).argmin())
        chosen.append(int(drawn[best]))
        distance = closer[:, best]
    return rows[chosen]


def _nearest(rows: Array, centres: Array) -> tuple[Array, Array]:
    """Index of each row's nearest centre and the squared distance, (n,) each."""
    owner, distance = np.empty(len(rows), np.int64), np.empty(len(rows))
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        squared = squared_distances(rows[part], centres)
        owner[part], distance[part] = squared.argmin(axis=1), squared.min(axis=1)
    return owner, distance


def _means(rows: Array, owner: Array, centres: Array) -> Array:
    """The mean of each centre's rows; a centre without rows stays."""
    total = np.zeros(centres.shape, np.float64)
    own = owner >= 0
    np.add.at(total, owner[own], rows[own])
    sizes = np.bincount(owner[own], minlength=len(centres))
    found = np.array(centres)
    found[sizes > 0] = total[sizes > 0] / sizes[sizes > 0, None]
    return found


def _most_typical(members: Array) -> int:
    """The row with the smallest mean distance to its nearest neighbours."""
    shown = members
    if len(members) > _TYPICAL:  # the middle of a large cluster
        middle = squared_distances(members, members.mean(axis=0, keepdims=True))[:, 0]
        order = np.argsort(middle, kind="stable")[:_TYPICAL]
        shown = members[order]
        return int(order[_most_typical(shown)])
    nearest = min(NEIGHBOURS, len(shown))
    distances = np.sort(np.sqrt(squared_distances(shown, shown)), axis=1)[:, :nearest]
    return int(distances.mean(axis=1).argmin())


def _farthest(rows: Array, near: Array, taken: Array, count: int) -> Array:
    """Greedy k-center: rows farthest from all that are near, one after the other."""
    distance = _nearest(rows, near)[1] if len(near) else np.ones(len(rows))
    distance[taken] = -1
    found = []
    for _ in range(count):
        row = int(distance.argmax())
        found.append(row)
        distance = np.minimum(distance, squared_distances(rows, rows[[row]])[:, 0])
        distance[[*found, *taken]] = -1
    return np.array(found, np.int64)
