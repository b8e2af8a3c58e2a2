"""The sizes a prediction depends on, and the phase it predicts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Workload:
    """What is to be trained: model, data and recipe sizes."""

    manifest: Any  # bundle.Manifest, or its plain view
    classes: int
    pictures: int
    batch: int
    moments: str = "auto"  # auto, fp32 or int8
    engine: str = "stock"
    average: bool = False  # weight averaging keeps two more copies for a moment
    optimizer: str = "adamw"
    files: dict[str, int] = field(default_factory=dict)  # sizes of the graphs' files
    head: str = "none"  # kind of closed-form head that is fitted before the evaluation
    head_pictures: int = 0  # training pictures that it is fitted on, where there is room


@dataclass(frozen=True)
class PhasePlan:
    """One phase: its predicted peak and the sizes that give it."""

    planned_peak_bytes: int
    batch: int | None = None
    chunk: int | None = None  # pictures at a time
    class_chunk: int | None = None  # classes at a time
    group: int | None = None
    mode: str | None = None  # train: fused, recompute or chunked
    arena: bool | None = None  # train: whether onnxruntime keeps a heap of its own
    max_pixels: int | None = None  # precompute: of pictures decoded in full
    keep_bytes: int | None = None  # train: of decoded class activations kept between steps
    hold_bytes: int | None = None  # train, chunked: activations kept for the backward pass
    moments: str | None = None  # train: fp32 or int8
    whole: bool | None = None  # precompute: the whole tower in one go
    head_pictures: int | None = None  # evaluate: training pictures that a kernel is fitted on
    disk_bytes: int | None = None  # precompute: hidden states of a group, gone when it is done
    parts: dict[str, int] = field(default_factory=dict)  # what the peak is made of

    def to_dict(self) -> dict[str, Any]:
        """Plain values without the sizes that do not apply."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def phase_of(parts: dict[str, float], **sizes: Any) -> PhasePlan:
    """A phase whose peak is the sum of its parts."""
    whole = {name: int(size) for name, size in parts.items()}
    return PhasePlan(planned_peak_bytes=sum(whole.values()), parts=whole, **sizes)


def parameter_count(manifest: Any) -> int:
    """Trained numbers of the ladder."""
    return sum(math.prod(parameter.shape) for parameter in manifest.ladder.parameters)


def tap_bytes(manifest: Any, side: str) -> int:
    """fp32 bytes of one picture's or one class's taps and embedding."""
    groups = [group for group in manifest.ladder.groups if group.side == side]
    taps = sum(len(group.taps) * group.tokens * group.width for group in groups)
    return 4 * (taps + manifest.model.embedding_dim)
