"""Prompt dropout: each training step leaves out a random share of the prompts' values.

As nn.Dropout: a value is zero with probability p, else 1 / (1 - p) times as large. The graphs hold
no randomness; they multiply prompts by a buffer that is drawn here before each step, from the run's
seed and the step's number, and set to ones after it. So a resumed run draws what it would have
drawn, a chunked step is exact, and nothing but a training step ever sees other values than ones.
One draw serves all samples of a step: what a text's embedding is cannot depend on the chunk it lies
in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.prompt_tensors import PromptTensors

if TYPE_CHECKING:
    from edgeladder.jobs.loop import TrainLoop

_STREAM = 7  # apart from what else draws from the run's seed


class PromptDropout:
    """Draws before every step, and restores after it.

    Args:
        names: which of the ladder's tensors are prompts.
        rate: p, in [0, 1).
        seed: the run's.
    """

    name = "prompt_dropout"

    def __init__(self, names: PromptTensors, rate: float, seed: int) -> None:
        self.names, self.rate, self.seed = names, rate, seed
        self.whole = np.ones(0, np.float32)  # what every step but a training step multiplies by

    def draw(self, shape: tuple[int, ...], step: int) -> np.ndarray:
        """What a step multiplies by: 0 or 1 / (1 - p), float32."""
        random = np.random.default_rng((_STREAM, self.seed, step))
        kept = random.random(shape, dtype=np.float32) >= np.float32(self.rate)
        return np.asarray(kept / np.float32(1 - self.rate), np.float32)

    def before(self, loop: TrainLoop) -> None:
        """Draw for this step."""
        if not self.whole.size:  # once: to ask is to copy all buffers
            self.whole = np.ones_like(loop.engine.buffers()[self.names.dropout])
        drawn = self.draw(self.whole.shape, loop.step)
        loop.engine.set_buffers({self.names.dropout: drawn})

    def after(self, loop: TrainLoop) -> None:
        """Ones again: for checkpoints, scores and the adapter."""
        loop.engine.set_buffers({self.names.dropout: self.whole})

    def finish(self, loop: TrainLoop) -> None:
        """Nothing is left to do."""

    def state(self) -> dict[str, Any]:
        """Nothing: a draw is a function of seed and step."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to continue from."""
