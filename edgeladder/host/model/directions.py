"""Rungs from blocks in principal directions of the residual stream in place of single channels.

After SliceGPT (Ashkboos et al., arXiv:2401.15024): what a transformer computes stays the same when
its residual stream is rotated, so the basis may be chosen in which most of the stream lies in the
first w coordinates, and the others are cut. Ours: the stream's layer norm subtracts a mean, so one
coordinate direction of the rung, (1, .., 1), is the block's own (1, .., 1) and the others span the
principal directions beside it. With U (W, w) of orthonormal columns, x the block's stream and
k = sqrt(p W / w), p the share of LN(x)'s energy that U keeps,

    s  = U^T x                                             the rung's state
    n  = k U LN(s)                                         what stands for LN(x)
    head j: softmax of the best rank-(w/H) part of (n Wq + bq)(n Wk)^T / sqrt(d_h), times the best
            rank-(w/H) part of n Wv Wo; a rung with more heads than the block uses the strongest
            again, for the next ranks of Wv Wo
    h  = a(W1[U'] n g2 + ..), U' the hidden units that weigh most, |row of W1| |column of W2|
    y  = s' + U^T (W2[:, U'] h + b2)

Nothing is scaled up for what is left out: a truncated product is the best one as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgeladder.host.model.cut import QUICK_GELU, Block
from edgeladder.host.model.rung import Rung

_FILL = 1e-3  # how much what the weights read orders directions that the probes leave empty


def gram(tokens: list[Tensor], blocks: list[Block]) -> Tensor:
    """Mean outer product (W, W) of standardised tokens, with a trace of what the blocks read."""
    width = tokens[0].shape[-1]
    total = torch.zeros(width, width)
    for rows in tokens:
        normed = torch.nn.functional.layer_norm(rows, (width,))
        total += normed.T @ normed / (len(normed) * len(tokens))
    for block in blocks:
        for norm, role in (("ln1", "qkv"), ("ln2", "fc1")):
            read = block[f"{role}_weight"] * block[f"{norm}_weight"]
            total += read.T @ read * (_FILL * width / (read**2).sum() / len(blocks))
    return total


def basis(moments: Tensor, width: int) -> tuple[Tensor, float]:
    """U (W, w) for the second moments (W, W) of LN(x), and the share p of them that it keeps."""
    full = len(moments)
    ones, mine = torch.ones(full, 1) / full**0.5, torch.ones(width, 1) / width**0.5
    free = torch.eye(full) - ones @ ones.T
    _, vectors = torch.linalg.eigh(free @ moments @ free)
    best = vectors.flip(1)[:, : width - 1]
    best = best - ones @ (ones.T @ best)
    # the rung's coordinates beside (1, .., 1), turned so that none stands out
    start = torch.eye(width)
    start[:, :1] = mine
    beside = torch.linalg.qr(start)[0][:, 1:]
    found = ones @ mine.T + best @ beside.T
    share = float((found * (moments @ found)).sum() / moments.diagonal().sum())
    return found, share


def cut_directions(rung: Rung, block: Block, directions: Tensor, share: float) -> None:
    """Fill a rung with a block in the directions (W, w); see the module's formula."""
    full, width = directions.shape
    gain = (share * full / width) ** 0.5

    def reads(role: str, norm: str) -> tuple[Tensor, Tensor]:
        """(w, out) for LN(s), and the bias (out,)."""
        weight, bias = block[f"{role}_weight"], block[f"{role}_bias"]
        seen = (weight * block[f"{norm}_weight"]) @ directions * gain
        return seen.T, bias + weight @ block[f"{norm}_bias"]

    weight, bias = reads("qkv", "ln1")
    query, key, value = weight.split(full, 1)
    back = block["out_weight"].T @ directions  # (W, w)
    _fill_heads(rung, block["heads"], (query, key, value, back), bias)
    value_bias = bias[2 * full :]
    rung.out_bias.copy_(block["out_bias"] @ directions + value_bias @ back)
    up, up_bias = reads("fc1", "ln2")
    down = block["fc2_weight"].T @ directions  # (F, w)
    strength, hidden = up.norm(dim=0) * down.norm(dim=1), rung.up.shape[1]
    best = strength.argsort(descending=True)[:hidden].sort().values
    rung.up.zero_()  # a rung with more hidden units than the block: the others are silent
    rung.up[:, : len(best)] = up[:, best] * QUICK_GELU
    rung.up_bias.zero_()
    rung.up_bias[: len(best)] = up_bias[best] * QUICK_GELU
    rung.down[: len(best)] = down[best] / QUICK_GELU
    rung.down_bias.copy_(block["fc2_bias"] @ directions)


def _fill_heads(
    rung: Rung, heads: int, weights: tuple[Tensor, Tensor, Tensor, Tensor], bias: Tensor
) -> None:
    """Attention of the rung from query, key, value (w, W each) and back (W, w) of the block."""
    query, key, value, back = weights
    width, per_head, inner = rung.width, len(back) // heads, rung.width // rung.heads
    parts = [slice(h * per_head, (h + 1) * per_head) for h in range(heads)]
    strength = torch.stack([(value[:, p] @ back[p]).norm() for p in parts])
    order = strength.argsort(descending=True).tolist()
    for place in range(rung.heads):
        part, turn = parts[order[place % heads]], place // heads
        mine = slice(place * inner, (place + 1) * inner)
        asked = torch.cat([query[:, part], bias[part][None]]) * per_head**-0.5
        left, right = _factors(asked, key[:, part].T, 0, inner)
        rung.query[:, mine], rung.query_bias[mine] = left[:-1], left[-1]
        rung.key_value[:, mine] = right.T
        left, right = _factors(value[:, part], back[part], turn * inner, inner)
        rung.key_value[:, width + mine.start : width + mine.stop] = left
        rung.out[mine] = right


def _factors(left: Tensor, right: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The singular parts first to first + count of left (a, r) @ right (r, b), zeros where none."""
    u, s, v = torch.linalg.svd(left @ right, full_matrices=False)
    rank = min(left.shape[1], len(s))
    chosen = slice(first, min(first + count, rank))
    root = s[chosen].sqrt()
    a, b = torch.zeros(len(left), count), torch.zeros(count, right.shape[1])
    a[:, : len(root)], b[: len(root)] = u[:, chosen] * root, root[:, None] * v[chosen]
    return a, b
