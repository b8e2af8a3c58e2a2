"""Which of a ladder's tensors are prompts: written at export, read by what stores and tunes them.

It travels in the manifest's `ladder` record and in `adapter.json`, so that a device condenses,
clusters and packs the prompts of a kind that it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PACKED = "packed:"  # before an adapter's tensor that is not stored as the ladder takes it


@dataclass(frozen=True, kw_only=True)
class PromptTensors:
    """Names of the tensors by what they are; one that a ladder has not is simply not there.

    The defaults are those of ladders whose record says nothing.
    """

    prefix: str = "prompts."  # begins the names of all that is trained with the prompts
    text: str = "prompts.tokens"  # (L, m, d); the pictures' too, where the two are coupled
    image: str = "prompts.image_tokens"  # (L, m, d)
    of_pictures: bool = True  # False: `text` is the classes' alone
    # (m, d), one row per place that all rungs share: left out where no rung keeps the place
    by_place: tuple[str, ...] = ("prompts.memory_key", "prompts.memory_value")
    mask: str = "prompts.mask"  # (L, m): 1 for kept prompts
    # begins the names of graph inputs (k,) int64, one a rung: places of its kept prompts, which
    # follow from the mask; graphs of older bundles lack them, and only silence what is dropped
    kept: str = "prompts.kept"
    dropout: str = "prompts.dropout"  # (2, L, m, d), image and text: what a step multiplies by
    codebook: str = "prompts.codebook"  # (2^bits,), ascending
    live: str = "prompts.live"  # (1,): 1 while mean and deviation are measured, 0 where stored
    statistics: str = "prompts.statistics"  # (sets, 2, L, 1, 1): stored mean and deviation

    @property
    def tokens(self) -> tuple[str, str]:
        """Tensors that may be quantized, in the order of `statistics`."""
        return self.text, self.image

    def kept_inputs(self, rungs: int) -> list[str]:
        """Names of the inputs that `kept` begins."""
        return [f"{self.kept}.{rung}" for rung in range(rungs)]

    def sets(self, tensors: Mapping[str, Any]) -> list[str]:
        """Those of `tokens` that a ladder has."""
        return [name for name in self.tokens if name in tensors]

    def places(self, tensors: Mapping[str, Any]) -> list[str]:
        """Those of `by_place` that a ladder has."""
        return [name for name in self.by_place if name in tensors]


@dataclass(frozen=True, kw_only=True)
class PackedPrompts:
    """How an adapter stores prompts that are quantized or condensed."""

    rungs: int
    prompts_per_rung: int
    width: int
    kept: int  # of rungs * prompts_per_rung
    bits: int | None  # per value; None: not quantized
    bytes: int  # of the stored tokens
