"""A rung: one transformer block of the ladder's width.

Written to export well: activations are 2-D rows, tokens first (row `t * N + n` is token t of sample
n), so that attention needs one transposition, and rows of pictures and of classes can lie in one
matrix and share every row-wise operator of a shared trunk.

Reparametrisations that cost no expressive power and save operators in every training step:
- layer norms have no affine part: it is folded into the weight that follows;
- no bias on keys, because q.b is the same for every key and softmax ignores it;
- none on values, because a row of attention sums to 1: `out_bias` = output bias + value bias Wo;
- QuickGELU(x W1) W2 = SiLU(x 1.702 W1) W2/1.702, so the activation is SiLU throughout: exact for
  CLIP's QuickGELU, within 0.021 per hidden unit for a GELU, which has no other place here;
- the 1/sqrt(head width) of attention lives in the query weight.

So a rung of a block's own width, heads and hidden units is that block (`cut.py` fills it in). The
biases after attention and after the feed-forward layer cannot wait for the next rung: the layer
norm between them would see the difference, and the last rung has no next.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import LadderConfig
from edgeladder.host.model.prompts import RungPrompts
from edgeladder.host.model.prompts.base import Attention, joined, split, standardise


class Rung(nn.Module):
    """A transformer block of the ladder's width over the rows of one or both sides."""

    def __init__(self, config: LadderConfig, fused: bool):
        super().__init__()
        width, hidden = config.width, int(config.width * config.hidden)
        self.width, self.heads = width, config.heads
        # LST's gate, arXiv:2206.06522: sigma(alpha / 0.1), alpha = 0
        self.gate = nn.Parameter(torch.zeros(1)) if fused and config.fuse == "gate" else None
        self.query = nn.Parameter(torch.randn(width, width) * (config.heads / width / width) ** 0.5)
        self.query_bias = nn.Parameter(torch.zeros(width))
        # keys and values in one product: [Wk | Wv]
        self.key_value = nn.Parameter(torch.randn(width, 2 * width) * width**-0.5)
        self.out = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.up = nn.Parameter(torch.randn(width, hidden) * width**-0.5)
        self.up_bias = nn.Parameter(torch.zeros(hidden))
        self.down = nn.Parameter(torch.randn(hidden, width) * hidden**-0.5)
        self.out_bias = nn.Parameter(torch.zeros(width))  # after attention
        self.down_bias = nn.Parameter(torch.zeros(width))  # after the feed-forward layer

    def forward(
        self,
        state: Tensor | None,
        taps: Tensor,
        tokens: Sequence[int],
        counts: Sequence[int],
        prompts: RungPrompts,
    ) -> Tensor:
        """One rung.

        Args:
            state: (R, d), R = sum of tokens * samples over the sides; None in the first rung.
            taps: (R, d), the rung's projected taps.
            tokens: tokens per side.
            counts: samples per side.
            prompts: this rung's.

        Returns:
            (R, d).
        """
        if state is None:
            state = taps
        elif self.gate is not None:
            state = state + torch.sigmoid(self.gate * -10.0) * (taps - state)
        else:
            state = state + taps
        rows = standardise(state)
        given = self.attend(rows, tokens, counts, prompts)
        given = torch.addmm(self.out_bias, given, self.out)
        sides = [t * n for t, n in zip(tokens, counts, strict=True)]
        state = prompts.after_attention(self, Attention(state, rows, given), sides)
        inner = standardise(state)
        hidden = functional.silu(torch.addmm(self.up_bias, inner, self.up))
        fed = state + torch.addmm(self.down_bias, hidden, self.down)
        return prompts.beside_feed_forward(inner, fed, sides)

    def attend(
        self,
        rows: Tensor,
        tokens: Sequence[int],
        counts: Sequence[int],
        prompts: RungPrompts,
    ) -> Tensor:
        """Self-attention within each sample, prompts as further keys and values: -> (R, d)."""
        sides = [t * n for t, n in zip(tokens, counts, strict=True)]
        extra = prompts.attended()
        query = split(torch.addmm(self.query_bias, rows, self.query), sides)
        seen = torch.cat([rows, *extra]) if extra else rows
        pieces = [*sides, *[prompt.shape[0] for prompt in extra]]
        keys_values = split(seen @ self.key_value, pieces)
        attended = []
        for side, (length, count) in enumerate(zip(tokens, counts, strict=True)):
            joint = keys_values[side].reshape(length, count, 2 * self.width)
            bias = None
            if extra:
                prompt = keys_values[len(sides) + side].unsqueeze(1).expand(-1, count, -1)
                joint = torch.cat([joint, prompt])  # (M, N, 2 d)
                if prompts.condensed:
                    bias = functional.pad(prompts.bias(), (length, 0))  # (1, M)
            keys, values = joint.split(self.width, -1)
            attended.append(self.heads_attend(query[side], keys, values, length, bias))
        return joined(attended)

    def heads_attend(
        self, query: Tensor, keys: Tensor, values: Tensor, length: int, bias: Tensor | None
    ) -> Tensor:
        """softmax(q k^T) v per sample and head: (T * N, d), (M, N, d) twice -> (T * N, d)."""
        inner = self.width // self.heads
        query = query.reshape(length, -1, inner).transpose(0, 1)  # (N * H, T, d/H)
        keys = keys.reshape(keys.shape[0], -1, inner).permute(1, 2, 0)  # (N * H, d/H, M)
        values = values.reshape(values.shape[0], -1, inner).transpose(0, 1)  # (N * H, M, d/H)
        scores = torch.matmul(query, keys)
        if bias is not None:
            scores = scores + bias
        mixed = torch.matmul(torch.softmax(scores, -1), values)
        return mixed.transpose(0, 1).reshape(-1, self.width)
