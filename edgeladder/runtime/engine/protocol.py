"""What an engine is, and what a training step is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np


@dataclass(frozen=True)
class StepPlan:
    """How a training step is computed; chosen by `budget/` alone."""

    mode: Literal["fused", "recompute", "chunked"] = "fused"
    chunk: int | None = None  # pictures at a time, where mode is chunked
    class_chunk: int | None = None  # classes at a time; None: as many as pictures
    moments: Literal["fp32", "int8"] = "fp32"
    threads: int = 2
    hold_bytes: int = 0  # chunked: activations kept between the passes, so that none runs twice
    arena: bool = True  # onnxruntime's own heap: a fifth faster, but it keeps what it once took


@dataclass(frozen=True)
class StepResult:
    """What a step reports."""

    loss: float
    gradient_norm: float  # global, before clipping


class Rows(Protocol):
    """(n, D) float32 rows of which only a window need be in memory; an array is one, too."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, D)."""

    def __len__(self) -> int:
        """n."""

    def __getitem__(self, window: slice, /) -> np.ndarray:
        """A window's rows, C-contiguous. Not to be written to."""


class StepInputs(Protocol):
    """One batch of pictures against all classes, read from the cache.

    B pictures, C classes, D embedding width; taps and class embeddings come in windows so that
    memory depends on the chunk and not on B or C.
    """

    labels: np.ndarray  # (B,) int64
    image_embedding: np.ndarray  # (B, D) float32, L2-normalised
    image_extra: dict[str, np.ndarray]  # (B, W) float32 each, named in manifest.ladder

    @property
    def text_embedding(self) -> Rows:
        """(C, D) float32, L2-normalised."""

    def image_taps(self, start: int, stop: int) -> list[np.ndarray]:
        """One (L, T, n, W) float32 array per image tap group, pictures start to stop."""

    def text_taps(self, start: int, stop: int) -> list[np.ndarray]:
        """One (L, T, n, W) float32 array per text tap group, classes start to stop."""


class Engine(Protocol):
    """Trains and runs the ladder of one bundle."""

    name: str

    def step(self, inputs: StepInputs, learning_rate: float) -> StepResult:
        """Loss, gradients, clipping and one optimiser update."""

    def encode_image(
        self, taps: list[np.ndarray], embedding: np.ndarray, extra: dict[str, np.ndarray]
    ) -> np.ndarray:
        """Tuned embeddings (n, D), L2-normalised."""

    def encode_text(self, taps: list[np.ndarray], embedding: np.ndarray) -> np.ndarray:
        """Tuned class embeddings (n, D), L2-normalised."""

    def state(self) -> dict[str, np.ndarray]:
        """All that continues training bit for bit: parameters, moments, step, buffers."""

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Continue from a `state()`."""

    def parameters(self) -> dict[str, np.ndarray]:
        """Trained tensors by name (copies)."""

    def set_parameters(self, values: dict[str, np.ndarray]) -> None:
        """Replace parameters by name; those not named stay."""

    def buffers(self) -> dict[str, np.ndarray]:
        """Untrained state by name (codebooks, masks)."""

    def set_buffers(self, values: dict[str, np.ndarray]) -> None:
        """Replace buffers by name."""

    def set_proximal(self, strength: float) -> None:
        """Add strength * |W|^2 over the weights that are zero at zero-shot to the loss."""

    def set_chunk(self, chunk: int | None) -> None:
        """Change the chunk between steps; results stay the same to 1e-5. None: as planned."""

    def close(self) -> None:
        """Free sessions; one that is used again opens anew."""
