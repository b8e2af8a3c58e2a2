"""Memory-space visual prompts (MemVP, Jie et al. 2024): further entries of the feed-forward layer.

In the paper a language model's tokens read a picture's features as entries of each feed-forward
layer. Here the picture's own side reads them. A class's text may not depend on a picture, or its
embedding could not be computed once: its entries are learnt tokens of each rung in their place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import LadderConfig
from edgeladder.host.model.prompts.base import (
    DEVIATION,
    PreparedPrompts,
    PromptMethod,
    RungPrompts,
    joined,
    register,
)

_SCALE = 0.1  # the paper's s
_VISUAL = 0.01  # times the projection of the picture's features, as in the paper's code
_NARROW = 4  # the projection's hidden layer is so many times narrower


@register("memory")
class MemoryPrompts(PromptMethod):
    """FFN(x) + s SiLU(x K^T) V, with K = P + E1 and V = P + E2; E1 and E2 are all rungs'.

    P of a picture is its own: m tokens of its taps through a small projection, two layers with a
    SiLU between. P of a class is the rung's.
    """

    by_place = ("memory_key", "memory_value")
    of_pictures = False

    def __init__(self, config: LadderConfig, rungs: int):
        super().__init__(config, rungs)
        self.memory_key = nn.Parameter(torch.randn(self.length, self.width) * DEVIATION)  # E1
        self.memory_value = nn.Parameter(torch.zeros(self.length, self.width))  # E2
        hidden = max(1, self.width // _NARROW)
        self.reduce = nn.Parameter(torch.randn(self.width, hidden) * self.width**-0.5)
        self.reduce_bias = nn.Parameter(torch.zeros(hidden))
        self.expand = nn.Parameter(torch.randn(hidden, self.width) * hidden**-0.5)

    def prepare(self, pictures: Sequence[Tensor], tokens: int) -> PreparedPrompts:
        """Keys and values: (m, N, d) of pictures, the same in every rung; (m, d) of classes."""
        seen = self.visual(pictures, tokens)
        text = self.quantized(self.tokens, 0)
        image_key = seen + self.memory_key.unsqueeze(1)
        image_value = (seen + self.memory_value.unsqueeze(1)) * _SCALE
        return PreparedPrompts(
            self,
            ((image_key,) * self.rungs, (text + self.memory_key).unbind(0)),
            ((image_value,) * self.rungs, ((text + self.memory_value) * _SCALE).unbind(0)),
        )

    def visual(self, pictures: Sequence[Tensor], tokens: int) -> Tensor:
        """P(x), (m, N, d): m tokens of each picture, those of the last tap first, projected.

        Where the taps have fewer than m, P is zero for the rest, as in the paper's code.
        """
        read = min(len(pictures), -(-self.length // tokens))
        taps = [pictures[-1 - place].reshape(tokens, -1, self.width) for place in range(read)]
        rows = joined(taps)[: self.length]
        hidden = torch.addmm(self.reduce_bias, rows.reshape(-1, self.width), self.reduce)
        projected = functional.silu(hidden) @ (self.expand * _VISUAL)
        projected = projected.reshape(len(rows), -1, self.width)
        rest = self.length - len(rows)
        if rest:
            projected = torch.cat([projected, (projected[:1] * 0.0).expand(rest, -1, -1)])
        return projected

    def beside_feed_forward(
        self, prompts: RungPrompts, inner: Tensor, fed: Tensor, sides: Sequence[int]
    ) -> Tensor:
        """(R, d) twice -> (R, d)."""
        pieces = zip(prompts.per_side(inner, sides), prompts.values, strict=True)
        return fed + joined([self.read(prompts, x, k, v) for (x, k), v in pieces])

    def read(self, prompts: RungPrompts, rows: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """SiLU(x K^T) V: rows (R, d) with entries of all (m, d) or of each sample (m, N, d)."""
        if keys.dim() == 2:
            score = functional.silu(rows @ keys.transpose(0, 1))
            return prompts.masked(score) @ values
        samples = rows.reshape(-1, *keys.shape[1:]).transpose(0, 1)  # (N, T, d)
        score = functional.silu(torch.matmul(samples, keys.permute(1, 2, 0)))  # (N, T, m)
        found = torch.matmul(prompts.masked(score), values.transpose(0, 1))
        return found.transpose(0, 1).reshape(-1, self.width)
