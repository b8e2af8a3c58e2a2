"""How the rungs' read-outs become one vector per sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import LadderConfig
from edgeladder.host.model.prompts.base import standardise

_TINY = 1e-6  # beside norms and sums that are divided by, as in SHERL's code


class Aggregate(nn.Module):
    """`last`: the last rung; `unipt` and `sherl`: all rungs, guided by the last.

    unipt (after Diao et al., UniPT, arXiv:2308.14316, ladder-space): each rung's read-out is
    weighted by its learnt similarity to the last one, and the mix is added to the last.
    sherl (Diao et al., SHERL, arXiv:2407.07523, its early route, ladder-space): the read-outs
    before the last are weighted by their learnt likeness to it over their redundancy, the sum of
    their positive cosines with one another; weights sum to 1, and the mix is added to the last.
    """

    def __init__(self, config: LadderConfig, rungs: int):
        super().__init__()
        self.kind = config.aggregate
        if self.kind == "unipt":
            self.match = nn.Parameter(torch.eye(config.width) * config.width**-0.5)
        if self.kind == "sherl" and rungs > 2:  # of two rungs there is but one to weigh
            self.like = nn.Parameter(torch.full((config.width,), 1.0 / config.width))
            self.like_bias = nn.Parameter(torch.zeros(1))

    def forward(self, read: Sequence[Tensor]) -> Tensor:
        """(N, d) per rung -> (N, d), standardised."""
        last = standardise(read[-1])
        if self.kind == "last" or len(read) == 1:
            return last
        if self.kind == "unipt":
            return last + self.similar(last, standardise(torch.stack(list(read))))
        if len(read) == 2:
            return last + standardise(read[0])
        return last + self.unlike_each_other(last, standardise(torch.stack(list(read[:-1]), 1)))

    def similar(self, last: Tensor, stack: Tensor) -> Tensor:
        """The mix of read-outs (L, N, d) by their similarity to the last (N, d)."""
        scores = (stack * (last @ self.match)).sum(-1, keepdim=True)  # (L, N, 1)
        # softmax over rungs: exporters and kernels want it on the last axis
        weights = torch.softmax(scores.permute(1, 2, 0), -1).permute(2, 0, 1)
        return (weights * stack).sum(0)

    def unlike_each_other(self, last: Tensor, stack: Tensor) -> Tensor:
        """The mix of read-outs (N, L - 1, d) by likeness to the last (N, d) over redundancy."""
        unit = stack / (torch.sqrt((stack * stack).sum(-1, keepdim=True)) + _TINY)
        cosines = functional.relu(torch.matmul(unit, unit.transpose(1, 2)))  # (N, L - 1, L - 1)
        like = (stack * (last * self.like).unsqueeze(1)).sum(-1, keepdim=True) + self.like_bias
        scores = functional.relu(like) / cosines.sum(-1, keepdim=True)
        weights = scores / (scores.sum(1, keepdim=True) + _TINY)
        return (weights * stack).sum(1)
