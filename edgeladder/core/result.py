"""What a command answers: the JSON objects of the design as frozen records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgeladder.core.job import Accuracy, Condensed, Counts, PseudoLabelResult
from edgeladder.core.memory_record import MemoryResult
from edgeladder.core.prompt_tensors import PackedPrompts
from edgeladder.core.provider import ProviderChoice


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """How fast the phases were."""

    precompute_images_per_second: float
    train_images_per_second: float
    step_ms_median: float


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """Samples of this run that were computed, and that were there."""

    new: int
    reused: int


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """Wall time of the phases."""

    precompute: float
    train: float
    evaluate: float
    pseudo_label: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """`train --json`, and `result.json` of a run."""

    run: str
    engine: str
    steps: int
    seed: int
    counts: Counts
    accuracy: Accuracy
    memory: MemoryResult
    throughput: Throughput
    resumed_from: int | None
    skipped_inputs: list[dict[str, str]]
    loss: float | None
    head: dict[str, Any] | None  # its kind and both weights; None: no head
    prompts: PackedPrompts | None  # how they are stored; None: as they are
    condensed: Condensed | None = None  # None: nothing was
    unlabelled: PseudoLabelResult | None = None  # None: no such pictures were there, or wanted
    adapter_bytes: int = 0  # of adapter.safetensors, a head's arrays among them
    provider: ProviderChoice = ProviderChoice()  # that ran the image tower, and why
    cache: CacheUse
    seconds: Seconds
