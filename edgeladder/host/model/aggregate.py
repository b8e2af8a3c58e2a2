"""How the rungs' read-outs become one vector per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import LadderConfig


class Aggregate(nn.Module):
    """`last`: the last rung; `unipt` and `sherl`: all rungs, guided by the last.

    unipt (after Diao et al., UniPT, arXiv:2308.14316, ladder-space): each rung's read-out is
    weighted by its learnt similarity to the last one, and the mix is added to the last.
    sherl (after Diao et al., SHERL, arXiv:2407.07523, ladder-space): the same mix over what is
    not redundant, that is each read-out minus its projection on the mean of the others, itself
    left out.
    """

    def __init__(self, config: LadderConfig, rungs: int):
        super().__init__()
        self.kind = config.aggregate
        if self.kind != "last":
            self.match = nn.Parameter(torch.eye(config.width) * config.width**-0.5)

    def forward(self, read: Sequence[Tensor]) -> Tensor:
        """(N, d) per rung -> (N, d), standardised."""
        last = functional.layer_norm(read[-1], read[-1].shape[-1:], eps=1e-5)
        if self.kind == "last" or len(read) == 1:
            return last
        stack = torch.stack(list(read))  # (L, N, d)
        stack = functional.layer_norm(stack, stack.shape[-1:], eps=1e-5)
        values = stack
        if self.kind == "sherl":
            others = (stack.sum(0, keepdim=True) - stack) * (1.0 / (len(read) - 1))
            share = (stack * others).sum(-1, keepdim=True) / (
                (others * others).sum(-1, keepdim=True) + 1e-6
            )
            values = stack - share * others
        scores = (stack * (last @ self.match)).sum(-1, keepdim=True)  # (L, N, 1)
        # softmax over rungs: exporters and kernels want it on the last axis
        weights = torch.softmax(scores.permute(1, 2, 0), -1).permute(2, 0, 1)
        return last + (weights * values).sum(0)
