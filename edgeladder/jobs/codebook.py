"""The codebook of quantized prompts: k-means on the device, again when the values have moved.

QPrompt (Hao et al., arXiv:2407.10704): values of each rung are brought to mean 0 and deviation 1,
one codebook of 2^bits entries for all rungs is clustered from them, and clustered again only when
enough steps have passed and the histogram of the indices has drifted.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.runtime.prompt_storage import nearest, spread

if TYPE_CHECKING:
    from edgeladder.jobs.loop import TrainLoop

_STEPS = 20  # between two looks: a prompt's values move by about the learning rate a step
_DRIFT = 0.01  # nats of KL between the histogram of the indices then and now
_ROUNDS = 50  # of Lloyd's algorithm, which ends by itself long before


def normalised(values: dict[str, np.ndarray], names: PromptTensors) -> np.ndarray:
    """All kept prompts' values at mean 0 and deviation 1 per rung and side, flat float32.

    Args:
        values: parameters and buffers of a ladder, by name.
        names: which of them are prompts.
    """
    mask = values.get(names.mask)
    parts = []
    for name in names.sets(values):
        mean, deviation = spread(values[name], mask)
        normal = (values[name] - mean) / deviation
        parts.append(normal.ravel() if mask is None else normal[mask > 0].ravel())
    return np.concatenate(parts)


def cluster(values: np.ndarray, start: np.ndarray) -> np.ndarray:
    """k-means in one dimension; ascending, and as fp16 holds it.

    From `start`, or from quantiles of the values where some entry of it has none; an entry that
    loses all of its values stays where it is.
    """
    ordered = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centres = np.sort(start.astype(np.float64))
    if not histogram(ordered, centres).all():
        centres = np.quantile(ordered, (np.arange(start.size) + 0.5) / start.size)
    for _ in range(_ROUNDS):
        edges = np.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        bounds = np.concatenate([[0], edges, [ordered.size]])
        counts = np.diff(bounds)
        means = (sums[bounds[1:]] - sums[bounds[:-1]]) / np.maximum(counts, 1)
        moved = np.sort(np.where(counts > 0, means, centres))
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres.astype(np.float16).astype(np.float32)


def histogram(values: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """How many values each entry stands for, (2^bits,) int64."""
    return np.bincount(nearest(values, codebook), minlength=codebook.size)


def drift(before: np.ndarray, now: np.ndarray) -> float:
    """KL(now || before) of two histograms, one count added to each entry."""
    p, q = (now + 1) / (now + 1).sum(), (before + 1) / (before + 1).sum()
    return float((p * np.log(p / q)).sum())


class Codebook:
    """Clusters at the first step, and whenever the indices have drifted since."""

    name = "codebook"

    def __init__(self, names: PromptTensors) -> None:
        self.names = names
        self.clustered_at: int | None = None
        self.counts = np.zeros(0, np.int64)

    def before(self, loop: TrainLoop) -> None:
        """Look, and cluster where it is time."""
        first = self.clustered_at is None
        if not first and (loop.step % _STEPS or loop.step == self.clustered_at):
            return
        engine = loop.engine
        values = {**engine.parameters(), **engine.buffers()}
        normal, codebook = normalised(values, self.names), values[self.names.codebook]
        moved = math.inf
        if not first:
            moved = drift(self.counts, histogram(normal, codebook))
            if moved < _DRIFT:
                return
        codebook = cluster(normal, codebook)
        engine.set_buffers({self.names.codebook: codebook})
        self.clustered_at, self.counts = loop.step, histogram(normal, codebook)
        loop.record(
            {"kind": "codebook", "step": loop.step, "drift": None if first else round(moved, 6)}
        )

    def after(self, loop: TrainLoop) -> None:
        """Nothing to do."""

    def finish(self, loop: TrainLoop) -> None:
        """The codebook stays what the last step was trained with."""

    def state(self) -> dict[str, Any]:
        """As JSON values."""
        return {"clustered_at": self.clustered_at, "counts": self.counts.tolist()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a `state()`."""
        self.clustered_at = state["clustered_at"]
        self.counts = np.array(state["counts"], np.int64)
