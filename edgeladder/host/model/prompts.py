"""Prompts of the ladder: learnable tokens of every rung, and the four ways they act.

token      further keys and values of the rung's self-attention (deep prompts)
cross      CVPT (Huang et al. 2024): read by cross-attention with the rung's own weights
diffusion  APT (Wu et al., arXiv:2306.15706): information diffusion without a softmax
memory     MemVP (Jie et al. 2024): further key-value entries of the feed-forward layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import LadderConfig

if TYPE_CHECKING:
    from edgeladder.host.model.ladder import Rung

_APT_RANK = 4  # of the diffusion's low-rank map, as in the paper's code
_MEMORY_SCALE = 0.1  # MemVP's s
_MASKED = -1e9  # added to a dropped prompt's attention score


@dataclass(frozen=True)
class View:
    """Prepared prompts of the sides that a rung works on."""

    owner: Prompts
    tokens: tuple[tuple[Tensor, ...], ...]  # per side, per rung: (m, d)

    def side(self, which: int) -> View:
        """The view of one side alone."""
        return replace(self, tokens=(self.tokens[which],))

    def of(self, index: int) -> list[Tensor]:
        """Prompts of a rung, (m, d) per side; empty where there are none."""
        return [side[index] for side in self.tokens if side]

    def inject(
        self,
        rung: Rung,
        state: Tensor,
        given: Sequence[Tensor],
        sides: Sequence[int],
        index: int,
    ) -> Tensor:
        """Cross and diffusion prompts act between attention and feed-forward: (R, d)."""
        owner = self.owner
        if owner.kind not in ("cross", "diffusion"):
            return state
        rows = functional.layer_norm(state, state.shape[-1:], eps=1e-5)
        pieces = rows.split(list(sides)) if len(sides) > 1 else (rows,)
        act = owner.cross if owner.kind == "cross" else owner.diffuse
        added = [act(rung, x, p, index) for x, p in zip(pieces, given, strict=True)]
        joined = torch.cat(added) if len(added) > 1 else added[0]
        return torch.addmm(state, joined, rung.out) if owner.kind == "cross" else state + joined

    def remember(
        self, inner: Tensor, fed: Tensor, given: Sequence[Tensor], sides: Sequence[int], index: int
    ) -> Tensor:
        """Memory prompts act beside the feed-forward layer: fed + s SiLU(x K^T) V, (R, d)."""
        owner = self.owner
        if owner.kind != "memory":
            return fed
        pieces = inner.split(list(sides)) if len(sides) > 1 else (inner,)
        added = []
        for x, prompt in zip(pieces, given, strict=True):
            keys = prompt + owner.memory_key
            values = (prompt + owner.memory_value) * _MEMORY_SCALE
            score = functional.silu(x @ keys.transpose(0, 1))
            added.append(owner.masked(score, index) @ values)
        return fed + (torch.cat(added) if len(added) > 1 else added[0])


class Prompts(nn.Module):
    """Learnable tokens (L, m, d) per rung, image prompts coupled to text prompts."""

    mask: Tensor
    codebook: Tensor
    live: Tensor
    statistics: Tensor

    def __init__(self, config: LadderConfig, rungs: int):
        super().__init__()
        prompts, width = config.prompts, config.width
        self.kind, self.couple_sides, self.bits = prompts.kind, prompts.couple, prompts.bits
        self.heads = config.heads
        self.rungs, self.length = rungs, prompts.length
        self.condensed = prompts.keep is not None
        if self.kind == "none":
            return
        self.tokens = nn.Parameter(torch.randn(rungs, prompts.length, width) * 0.02)
        if prompts.couple:
            # MaPLe-style coupling, zero at the start
            self.couple = nn.Parameter(torch.zeros(rungs, width, width))
        else:
            self.image_tokens = nn.Parameter(torch.randn(rungs, prompts.length, width) * 0.02)
        if self.kind == "diffusion":
            self.reduce = nn.Parameter(torch.randn(rungs, width, _APT_RANK))
            self.expand = nn.Parameter(torch.zeros(rungs, _APT_RANK, width))
            self.scale = nn.Parameter(torch.zeros(rungs))
        if self.kind == "memory":
            self.memory_key = nn.Parameter(torch.randn(prompts.length, width) * 0.02)
            self.memory_value = nn.Parameter(torch.zeros(prompts.length, width))
        if self.condensed:
            self.register_buffer("mask", torch.ones(rungs, prompts.length))
        if self.bits is not None:
            # quantiles of a normal distribution: k-means on the device takes over from there
            levels = (torch.arange(2**self.bits) + 0.5) / 2**self.bits
            self.register_buffer("codebook", torch.erfinv(2 * levels - 1) * 2**0.5)
            # a stored adapter brings mean and deviation of each rung's prompts, because those of
            # the quantized ones are others; in training `live` is 1 and they are measured
            sets = 1 if prompts.couple else 2
            self.register_buffer("live", torch.ones(1))
            self.register_buffer("statistics", torch.zeros(sets, 2, rungs, 1, 1))

    def prepare(self) -> View:
        """Quantise and couple all rungs' prompts at once."""
        if self.kind == "none":
            return View(self, ((), ()))
        text = self.quantize(self.tokens, 0)
        image = (
            text + text @ self.couple if self.couple_sides else self.quantize(self.image_tokens, 1)
        )
        if self.kind in ("token", "cross"):  # these meet weights that expect standardised rows
            image, text = self.standardise(image), self.standardise(text)
        return View(self, (image.unbind(0), text.unbind(0)))

    def standardise(self, tokens: Tensor) -> Tensor:
        """Layer norm over rows: in 3-D onnxruntime would fuse it with the sum before it."""
        width = tokens.shape[-1]
        rows = functional.layer_norm(tokens.reshape(-1, width), (width,), eps=1e-5)
        return rows.reshape(self.rungs, self.length, width)

    def quantize(self, tokens: Tensor, which: int) -> Tensor:
        """QPrompt (Hao et al., arXiv:2407.10704): nearest codebook entry, straight-through.

        W_q = sigma Q((W - mu) / sigma) + mu, mu and sigma of each rung.
        """
        if self.bits is None:
            return tokens
        measured = self.over_kept(tokens)
        centred = tokens - measured
        # never zero: prompts that are all alike stay as they are
        spread = torch.sqrt(self.over_kept(centred * centred) + 1e-24)
        mean = measured * self.live + self.statistics[which, 0]
        deviation = spread * self.live + self.statistics[which, 1]
        normal = (tokens - mean) / deviation
        middle = (self.codebook[1:] + self.codebook[:-1]) * 0.5
        steps = self.codebook[1:] - self.codebook[:-1]
        above = (normal.unsqueeze(-1) > middle).to(tokens.dtype)
        nearest = self.codebook[:1] + (above * steps).sum(-1)
        quantized = deviation * nearest + mean
        return tokens + (quantized - tokens).detach()

    def over_kept(self, values: Tensor) -> Tensor:
        """Mean over each rung's kept prompts: (L, m, d) -> (L, 1, 1)."""
        if not self.condensed:
            return values.mean((1, 2), keepdim=True)
        mask = self.mask.unsqueeze(-1)  # (L, m, 1)
        share = mask / (mask.sum(1, keepdim=True) + 1e-12)  # a rung may have lost all of them
        return (values.mean(2, keepdim=True) * share).sum(1, keepdim=True)

    def bias(self, index: int) -> Tensor:
        """(1, m): 0 for kept prompts, a large negative score for condensed ones."""
        return (1.0 - self.mask[index : index + 1]) * _MASKED

    def masked(self, scores: Tensor, index: int) -> Tensor:
        """Scores (R, m) with condensed prompts at zero."""
        return scores * self.mask[index : index + 1] if self.condensed else scores

    def cross(self, rung: Rung, rows: Tensor, prompt: Tensor, index: int) -> Tensor:
        """softmax((x Wq)(P Wk)^T) (P Wv) per head, the rung's own weights: (R, d) -> (R, d)."""
        inner = rung.width // rung.heads
        query = torch.addmm(rung.query_bias, rows, rung.query)
        query = query.reshape(-1, rung.heads, inner).transpose(0, 1)  # (H, R, d/H)
        key, value = (prompt @ rung.key_value).split(rung.width, -1)
        keys = key.reshape(-1, rung.heads, inner).permute(1, 2, 0)
        values = value.reshape(-1, rung.heads, inner).transpose(0, 1)
        scores = torch.matmul(query, keys)
        if self.condensed:
            scores = scores + self.bias(index)
        mixed = torch.matmul(torch.softmax(scores, -1), values)
        return mixed.transpose(0, 1).reshape(-1, rung.width)

    def diffuse(self, rung: Rung, rows: Tensor, prompt: Tensor, index: int) -> Tensor:
        """exp(s) w (A P), A = ReLU(x (P + P W1 W2)^T), w = max_j A_j without gradient."""
        keys = prompt + prompt @ self.reduce[index] @ self.expand[index]
        scores = self.masked(functional.relu(rows @ keys.transpose(0, 1)), index)
        weight = scores.amax(-1, keepdim=True).detach()
        return torch.exp(self.scale[index : index + 1]) * (weight * (scores @ prompt))
