"""Approximated prompts (APT, Wu et al., arXiv:2306.15706): diffusion without a softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import LadderConfig
from edgeladder.host.model.prompts.base import (
    Attention,
    PromptMethod,
    RungPrompts,
    RungWeights,
    joined,
    register,
)

_RANK = 4  # of the keys' low-rank map, as in the paper's code


@register("diffusion")
class DiffusionPrompts(PromptMethod):
    """x + exp(s) (Attention(X) + w (A P)), X the layer norm of x that attention reads.

    A = ReLU(X (P + P W1 W2)^T), and w = max_j A_j of each row, without gradient.
    """

    undecayed = ("scale",)

    def __init__(self, config: LadderConfig, rungs: int):
        super().__init__(config, rungs)
        self.reduce = nn.Parameter(torch.randn(rungs, self.width, _RANK))  # W1
        self.expand = nn.Parameter(torch.zeros(rungs, _RANK, self.width))  # W2
        self.scale = nn.Parameter(torch.zeros(rungs))  # s

    def after_attention(
        self, prompts: RungPrompts, rung: RungWeights, it: Attention, sides: Sequence[int]
    ) -> Tensor:
        """(R, d) -> (R, d)."""
        pieces = prompts.per_side(it.read, sides)
        diffused = joined([self.diffuse(prompts, rows, prompt) for rows, prompt in pieces])
        scale = torch.exp(self.scale[prompts.index : prompts.index + 1])
        return it.state + scale * (it.given + diffused)

    def diffuse(self, prompts: RungPrompts, rows: Tensor, prompt: Tensor) -> Tensor:
        """What diffuses from prompts (m, d) into rows (R, d)."""
        index = prompts.index
        keys = prompt + prompt @ self.reduce[index] @ self.expand[index]
        scores = prompts.masked(functional.relu(rows @ keys.transpose(0, 1)))
        weight = scores.amax(-1, keepdim=True).detach()
        return weight * (scores @ prompt)
