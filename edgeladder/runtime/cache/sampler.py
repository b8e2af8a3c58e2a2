"""Which pictures, in which view, each step trains on: a function of the seed and the step alone.

Every epoch is a permutation, batches run on across epochs so that all have the same size, and the
chances come from a counter through a mixing function: three integers are the whole state, and no
library's generator can change a run between versions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeladder.core.errors import ConfigError

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def mix(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser over uint64 counters (Steele, Lea, Flood 2014, fig. 1)."""
    values = values.astype(np.uint64)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(values ^ (values >> np.uint64(31)))


def _stream(seed: int, purpose: int, epoch: int, count: int) -> np.ndarray:
    """`count` mixed numbers for one purpose in one epoch."""
    start = np.uint64(0)
    for part in (seed, purpose, epoch):
        start = mix(np.array([(int(start) + part * _GOLDEN + 1) & _MASK], np.uint64))[0]
    counters = np.arange(count, dtype=np.uint64) * np.uint64(_GOLDEN) + start
    return mix(counters)


class Sampler:
    """Batches of picture indices and views."""

    def __init__(self, count: int, batch: int, seed: int, views: int = 0):
        """Start at the first picture of the first epoch.

        Args:
            count: pictures.
            batch: at most; fewer where there are fewer pictures.
            views: augmented views per picture, one of which (or the plain one) is drawn each time.
        """
        if count < 1 or batch < 1:
            raise ConfigError(
                f"cannot draw batches of {batch} from {count} pictures",
                where="train.batch",
                remedy="use a batch of at least 1, and at least one picture",
            )
        self.count = count
        self.batch = min(batch, count)
        self.seed = seed
        self.views = views
        self.epoch = 0
        self.position = 0  # within the epoch's permutation
        self._made: tuple[int, np.ndarray, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every picture was seen once."""
        return -(-self.count // self.batch)

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices (B,) int64 and views (B,) int64 of the next step."""
        indices, views = [], []
        missing = self.batch
        while missing:
            order, drawn = self._epoch()
            stop = min(self.count, self.position + missing)
            indices.append(order[self.position : stop])
            views.append(drawn[self.position : stop])
            missing -= stop - self.position
            self.position = stop
            if stop == self.count:
                self.epoch, self.position = self.epoch + 1, 0
        wide = (np.concatenate(parts).astype(np.int64) for parts in (indices, views))
        return next(wide), next(wide)

    def _epoch(self) -> tuple[np.ndarray, np.ndarray]:
        if self._made is None or self._made[0] != self.epoch:
            order = np.argsort(_stream(self.seed, 1, self.epoch, self.count), kind="stable")
            order = order.astype(np.uint32)  # both are kept for an epoch: six bytes a picture
            drawn = np.zeros(self.count, np.uint16)
            if self.views:
                chances = _stream(self.seed, 2, self.epoch, self.count)
                drawn = (chances % np.uint64(self.views + 1)).astype(np.uint16)
            self._made = (self.epoch, order, drawn)
        return self._made[1], self._made[2]

    def state(self) -> dict[str, Any]:
        """The position, as JSON values."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "position": self.position,
            "count": self.count,
            "batch": self.batch,
            "views": self.views,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a `state()`.

        Raises:
            ConfigError: it is of other pictures, batches or views.
        """
        mine = self.state()
        for name in ("seed", "count", "batch", "views"):
            now = mine[name]
            if state.get(name) != now:
                raise ConfigError(
                    f"the checkpoint was made with {name} {state.get(name)}, now it is {now}",
                    where="--resume",
                    remedy="resume with the pictures and settings the run was started with",
                )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
