"""Golden steps: a fixed input with expected loss, gradients and state, replayed on any device.

What is compared are three numbers per tensor (sum, Euclidean norm, product with a fixed wave), so
that the file stays small; the host's gate compares every element before it writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import LossConfig, TrainConfig
from edgeladder.core.tensors import TensorFile
from edgeladder.runtime.engine.protocol import Engine, StepPlan

STEPS = 3
LEARNING_RATE = 1e-3
TOLERANCE = 1e-4
_AMPLITUDE = 0.05


class ArrayInputs:
    """`StepInputs` over arrays in memory, keyed as the graphs name them."""

    def __init__(self, arrays: dict[str, np.ndarray], groups: dict[str, list[str]]):
        self._arrays, self._groups = arrays, groups
        self.labels = np.argmax(arrays["targets"], axis=1).astype(np.int64)
        self.image_embedding = arrays["image_embedding"]
        self.text_embedding = arrays["text_embedding"]
        extra = ("image_embedding_pre",)
        self.image_extra = {name: arrays[name] for name in extra if name in arrays}

    def image_taps(self, start: int, stop: int) -> list[np.ndarray]:
        """Windows of the image taps; see `StepInputs`."""
        return self._window("image", start, stop)

    def text_taps(self, start: int, stop: int) -> list[np.ndarray]:
        """Windows of the text taps; see `StepInputs`."""
        return self._window("text", start, stop)

    def _window(self, side: str, start: int, stop: int) -> list[np.ndarray]:
        return [
            np.ascontiguousarray(self._arrays[name][:, :, start:stop])
            for name in self._groups[side]
        ]


def groups_of(bundle: Bundle) -> dict[str, list[str]]:
    """Names of the tap inputs by side."""
    groups = bundle.manifest.ladder.groups
    return {side: [g.input for g in groups if g.side == side] for side in ("image", "text")}


def wave(name: str, size: int) -> np.ndarray:
    """A fixed pattern of a tensor's size, the same on every machine."""
    offset = sum(name.encode()) % 97
    return np.sin(np.arange(size, dtype=np.float64) * 0.7391 + offset)


def perturbed(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Away from the start, where nearly all gradients are zero."""
    return {
        name: value + (_AMPLITUDE * wave(name, value.size).reshape(value.shape)).astype(np.float32)
        for name, value in parameters.items()
    }


def fingerprint(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sum, norm and wave product of each tensor."""
    found = {}
    for name, value in tensors.items():
        flat = value.astype(np.float64).ravel()
        found[name] = np.array([flat.sum(), np.linalg.norm(flat), flat @ wave(name, flat.size)])
    return found


def golden_train() -> TrainConfig:
    """The optimiser of golden steps."""
    return TrainConfig(learning_rate=LEARNING_RATE, weight_decay=0.01, clip=1.0)


def run_steps(engine: Engine, inputs: Any) -> dict[str, np.ndarray]:
    """Losses of the golden steps and the parameters after them."""
    engine.set_parameters(perturbed(engine.parameters()))
    losses = [engine.step(inputs, LEARNING_RATE).loss for _ in range(STEPS)]
    result = {f"state/{name}": value for name, value in engine.parameters().items()}
    result["losses"] = np.array(losses)
    return result


def replay(bundle: Bundle, engine: str = "auto", threads: int = 2) -> dict[str, Any]:
    """Run the golden steps here and compare with what the host wrote.

    Returns:
        `engine`, `ok`, `loss_error` and `state_error` (relative), `path`.
    """
    from edgeladder.runtime.engine import open_engine

    path: Path = bundle.path(bundle.manifest.ladder.golden)
    golden = TensorFile(path, remedy="copy or export the bundle again")
    arrays = {n.partition("/")[2]: golden[n] for n in golden if n.startswith("input/")}
    opened = open_engine(engine, bundle, StepPlan(threads=threads), golden_train(), LossConfig())
    found = run_steps(opened, ArrayInputs(arrays, groups_of(bundle)))
    name = opened.name
    opened.close()
    losses = golden["losses"]
    loss_error = float(np.max(np.abs(found["losses"] - losses) / np.abs(losses)))
    mine = fingerprint({n.partition("/")[2]: v for n, v in found.items() if n != "losses"})
    state_error = 0.0
    for label, prints in mine.items():
        expected = golden[f"state/{label}"]
        scale = np.array([expected[1] * max(1.0, np.sqrt(2.0)), expected[1], expected[1]]) + 1e-12
        state_error = max(state_error, float(np.max(np.abs(prints - expected) / scale)))
    return {
        "engine": name,
        "ok": loss_error < TOLERANCE and state_error < 10 * TOLERANCE,
        "loss_error": loss_error,
        "state_error": state_error,
        "path": str(path),
    }
