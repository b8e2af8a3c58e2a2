"""Adaptive prompts (APT, Wu et al., arXiv:2306.15706): information diffusion without a softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import LadderConfig
from edgeladder.host.model.prompts.base import (
    PromptMethod,
    RungPrompts,
    RungWeights,
    joined,
    register,
    standardise,
)

_RANK = 4  # of the keys' low-rank map, as in the paper's code


@register("diffusion")
class DiffusionPrompts(PromptMethod):
    """x + exp(s) w (A P), with A = ReLU(x (P + P W1 W2)^T) and w = max_j A_j without gradient."""

    undecayed = ("scale",)

    def __init__(self, config: LadderConfig, rungs: int):
        super().__init__(config, rungs)
        self.reduce = nn.Parameter(torch.randn(rungs, self.width, _RANK))  # W1
        self.expand = nn.Parameter(torch.zeros(rungs, _RANK, self.width))  # W2
        self.scale = nn.Parameter(torch.zeros(rungs))  # s

    def after_attention(
        self, prompts: RungPrompts, rung: RungWeights, state: Tensor, sides: Sequence[int]
    ) -> Tensor:
        """(R, d) -> (R, d)."""
        pieces = prompts.per_side(standardise(state), sides)
        return state + joined([self.diffuse(prompts, rows, prompt) for rows, prompt in pieces])

    def diffuse(self, prompts: RungPrompts, rows: Tensor, prompt: Tensor) -> Tensor:
        """What diffuses from prompts (m, d) into rows (R, d)."""
        index = prompts.index
        keys = prompt + prompt @ self.reduce[index] @ self.expand[index]
        scores = prompts.masked(functional.relu(rows @ keys.transpose(0, 1)))
        weight = scores.amax(-1, keepdim=True).detach()
        return torch.exp(self.scale[index : index + 1]) * (weight * (scores @ prompt))
