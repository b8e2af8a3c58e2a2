"""Memory-space prompts (MemVP, Jie et al. 2024): further key-value entries of the feed-forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import LadderConfig
from edgeladder.host.model.prompts.base import PromptMethod, RungPrompts, joined, register

_SCALE = 0.1  # the paper's s


@register("memory")
class MemoryPrompts(PromptMethod):
    """FFN(x) + s SiLU(x K^T) V, with K = P + k and V = P + v; k and v are the same in all rungs."""

    by_place = ("memory_key", "memory_value")

    def __init__(self, config: LadderConfig, rungs: int):
        super().__init__(config, rungs)
        self.memory_key = nn.Parameter(torch.randn(self.length, self.width) * 0.02)
        self.memory_value = nn.Parameter(torch.zeros(self.length, self.width))

    def beside_feed_forward(
        self, prompts: RungPrompts, inner: Tensor, fed: Tensor, sides: Sequence[int]
    ) -> Tensor:
        """(R, d) twice -> (R, d)."""
        added = []
        for rows, prompt in prompts.per_side(inner, sides):
            keys = prompt + self.memory_key
            values = (prompt + self.memory_value) * _SCALE
            score = functional.silu(rows @ keys.transpose(0, 1))
            added.append(prompts.masked(score) @ values)
        return fed + joined(added)
