"""Cross-attention prompts (CVPT, Huang et al. 2024), with the rung's own weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeladder.host.model.prompts.base import (
    PromptMethod,
    RungPrompts,
    RungWeights,
    joined,
    register,
    standardise,
)


@register("cross")
class CrossPrompts(PromptMethod):
    """x + softmax((x Wq)(P Wk)^T) (P Wv) Wo, after the rung's self-attention."""

    standardised = True

    def after_attention(
        self, prompts: RungPrompts, rung: RungWeights, state: Tensor, sides: Sequence[int]
    ) -> Tensor:
        """(R, d) -> (R, d)."""
        pieces = prompts.per_side(standardise(state), sides)
        added = [self.attend(prompts, rung, rows, prompt) for rows, prompt in pieces]
        return torch.addmm(state, joined(added), rung.out)

    def attend(
        self, prompts: RungPrompts, rung: RungWeights, rows: Tensor, prompt: Tensor
    ) -> Tensor:
        """softmax((x Wq)(P Wk)^T) (P Wv) per head: (R, d), (m, d) -> (R, d)."""
        inner = rung.width // rung.heads
        query = torch.addmm(rung.query_bias, rows, rung.query)
        query = query.reshape(-1, rung.heads, inner).transpose(0, 1)  # (H, R, d/H)
        key, value = (prompt @ rung.key_value).split(rung.width, -1)
        keys = key.reshape(-1, rung.heads, inner).permute(1, 2, 0)
        values = value.reshape(-1, rung.heads, inner).transpose(0, 1)
        scores = torch.matmul(query, keys)
        if prompts.condensed:
            scores = scores + prompts.bias()
        mixed = torch.matmul(torch.softmax(scores, -1), values)
        return mixed.transpose(0, 1).reshape(-1, rung.width)
