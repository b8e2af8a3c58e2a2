"""Cross-attention prompts (CVPT, Huang et al., arXiv:2408.14961)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from edgeladder.core.config import LadderConfig
from edgeladder.host.model.prompts.base import (
    DEVIATION,
    Attention,
    PromptMethod,
    RungPrompts,
    RungWeights,
    joined,
    register,
    standardise,
)

_WEIGHTS = ("query", "query_bias", "key_value", "out", "out_bias")


class CopiedAttention(nn.Module):
    """The attention weights of a rung as they were when they were copied."""

    query: nn.Parameter
    query_bias: nn.Parameter
    key_value: nn.Parameter
    out: nn.Parameter
    out_bias: nn.Parameter

    def __init__(self, rung: RungWeights, *, trained: bool):
        super().__init__()
        self.width, self.heads = rung.width, rung.heads
        for name in _WEIGHTS:
            value = getattr(rung, name).detach().clone()
            if trained:
                setattr(self, name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def follow(self, rung: RungWeights) -> None:
        """Copy them again."""
        with torch.no_grad():
            for name in _WEIGHTS:
                getattr(self, name).copy_(getattr(rung, name))


@register("cross")
class CrossPrompts(PromptMethod):
    """x + softmax((x Wq)(P Wk)^T) (P Wv) Wo, after the rung's self-attention.

    The weights are the rung's own, or copies of what they were before training, trained on their
    own or frozen as in the paper (`ladder.prompts.cross_weights`).
    """

    size = 1 / DEVIATION  # of the normed rows that the weights were made for

    def __init__(self, config: LadderConfig, rungs: int):
        super().__init__(config, rungs)
        self.weights = config.prompts.cross_weights
        if self.weights != "shared":
            self.copies = nn.ModuleList()

    def copy_attention(self, sides: Sequence[Mapping[int, RungWeights]]) -> None:
        """Copies of every rung's attention, where not the rungs' own are used."""
        if self.weights == "shared":
            return
        if not len(self.copies):
            trained = self.weights == "copied"
            for rungs in sides:
                made = {str(k): CopiedAttention(rung, trained=trained) for k, rung in rungs.items()}
                self.copies.append(nn.ModuleDict(made))
        for copies, rungs in zip(self.copies, sides, strict=True):
            for index, rung in rungs.items():
                copies[str(index)].follow(rung)

    def after_attention(
        self, prompts: RungPrompts, rung: RungWeights, it: Attention, sides: Sequence[int]
    ) -> Tensor:
        """(R, d) -> (R, d)."""
        state, weights = it.added(), self.attention_of(prompts, rung)
        pieces = prompts.per_side(standardise(state), sides)
        added = [self.attend(prompts, weights, rows, prompt) for rows, prompt in pieces]
        return state + torch.addmm(weights.out_bias, joined(added), weights.out)

    def attention_of(self, prompts: RungPrompts, rung: RungWeights) -> RungWeights:
        """The weights that read the prompts of a rung."""
        if self.weights == "shared":
            return rung
        # a trunk that both sides share has one set of copies
        copies = self.copies[min(prompts.which, len(self.copies) - 1)]
        found: RungWeights = copies[str(prompts.index)]
        return found

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
        # a rung that keeps none has one row here, whose share is all: the mask takes it away
        mixed = torch.matmul(prompts.masked(torch.softmax(scores, -1)), values)
        return mixed.transpose(0, 1).reshape(-1, rung.width)
