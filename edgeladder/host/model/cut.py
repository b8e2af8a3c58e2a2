"""One rung from one transformer block: channels, heads and hidden units cut to the ladder's width.

With W and w the widths of block and rung, H the rung's heads, F and f the hidden units, K the kept
channels, R the kept rows of queries, keys and values, U the kept hidden units, g and b a layer
norm's affine part, the rung computes

    n  = LN(x) g1[K] + b1[K]                               x: (T, w), normed over its w channels
    q  = c Wq[R, K] n + bq[R],  likewise k and v            c = sqrt(W / w)
    x' = x + c Wo[K, R] (softmax(q k^T / sqrt(w / H)) v) + bo[K]
    h  = a(c W1[U, K] (LN(x') g2[K] + b2[K]) + b1[U])       a: see `rung.py`
    y  = x' + sqrt(F / f) W2[K, U] h + b2[K]

c and sqrt(F / f) keep the variance of a sum of W (or F) independent terms when only w (or f) of
them are left; 1/sqrt(w / H) does the same for the scores. All three are the block's own at its full
width, where the rung is the block. A rung wider than its block repeats channels, rows and units:
equal terms add up in proportion, so there the roots are left out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgeladder.host.model.rung import Rung

QUICK_GELU = 1.702  # GELU(x) ~ x sigmoid(1.702 x)

Block = dict[str, Any]  # weights by role, as `Tower.block_weights` gives them


def importance_of(block: Block, role: str) -> Tensor:
    """How much each weight of a role matters, shaped as the weight: given, or its magnitude."""
    given: Tensor | None = block.get(f"{role}_importance")
    magnitude: Tensor = block[f"{role}_weight"].abs()
    return magnitude if given is None else given


def kept_channels(blocks: list[Block], width: int) -> Tensor:
    """Indices of the `width` channels of the residual stream that the blocks read most."""
    total = torch.zeros(blocks[0]["ln1_weight"].shape[0])
    for block in blocks:
        for norm, role in (("ln1", "qkv"), ("ln2", "fc1")):
            read = importance_of(block, role).sum(0)
            # a magnitude counts as large as the norm before it makes the input; Fisher knows that
            fisher = f"{role}_importance" in block
            total += read if fisher else block[f"{norm}_weight"].abs() * read
    return _strongest(total, width)


def kept_rows(block: Block, heads: int, inner: int) -> Tensor:
    """Rows of q, k, v that make `heads` heads of `inner` each: (heads * inner,).

    The strongest heads, and the strongest rows of each. Where the rung has more heads than the
    block, the strongest give further heads, of the rows that the first ones left.
    """
    width = block["qkv_weight"].shape[1]
    per_head = width // block["heads"]
    parts = importance_of(block, "qkv").reshape(3, block["heads"], per_head, width)
    strength = parts.sum((0, 3))  # q, k and v are ranked together
    order = strength.sum(1).argsort(descending=True)
    rows = []
    for place in sorted(range(heads), key=lambda n: (int(order[n % len(order)]), n)):
        head, turn = order[place % len(order)], place // len(order)
        ranked = strength[head].argsort(descending=True)
        chosen = ranked[(turn * inner + torch.arange(inner)) % per_head].sort().values
        rows.append(head * per_head + chosen)
    return torch.cat(rows)


def kept_hidden(block: Block, hidden: int) -> Tensor:
    """Indices of the hidden units whose weights are strongest: (hidden,)."""
    return _strongest(importance_of(block, "fc1").sum(1), hidden)


def _strongest(strength: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest in order; all of them, repeated, where there are fewer."""
    if len(strength) >= count:
        return strength.topk(count).indices.sort().values
    return torch.arange(count) % len(strength)


def _compensation(full: int, kept: int) -> float:
    """What a sum of `kept` in place of `full` terms is multiplied by."""
    return (full / kept) ** 0.5 if kept <= full else full / kept


def cut(rung: Rung, block: Block, kept: Tensor) -> None:
    """Fill a rung with a block cut to the channels `kept` (w,); see the module's formula."""
    full, inner = block["qkv_weight"].shape[1], rung.width // rung.heads
    hidden, units = rung.up.shape[1], block["fc1_weight"].shape[0]
    rows, best = kept_rows(block, rung.heads, inner), kept_hidden(block, hidden)
    gain = _compensation(full, rung.width)

    def reads(weight: Tensor, bias: Tensor, norm: str) -> tuple[Tensor, Tensor]:
        """(out, W) behind a layer norm -> (w, out) and (out,) without its affine part."""
        inside = weight[:, kept] * gain
        scale, shift = block[f"{norm}_weight"][kept], block[f"{norm}_bias"][kept]
        return (inside * scale).T, bias + inside @ shift

    (query, query_bias), (key, _), (value, value_bias) = (
        reads(weight[rows], bias[rows], "ln1")
        for weight, bias in zip(
            block["qkv_weight"].reshape(3, full, full),
            block["qkv_bias"].reshape(3, full),
            strict=True,
        )
    )
    out = block["out_weight"][kept][:, rows].T * gain
    per_head = full // block["heads"]
    temperature = per_head**-0.5 * _compensation(per_head, inner)
    rung.query.copy_(query * temperature)
    rung.query_bias.copy_(query_bias * temperature)
    rung.key_value.copy_(torch.cat([key, value], 1))
    rung.out.copy_(out)
    rung.out_bias.copy_(block["out_bias"][kept] + value_bias @ out)  # attention's rows sum to 1
    up, up_bias = reads(block["fc1_weight"][best], block["fc1_bias"][best], "ln2")
    rung.up.copy_(up * QUICK_GELU)
    rung.up_bias.copy_(up_bias * QUICK_GELU)
    back = block["fc2_weight"][kept][:, best].T * _compensation(units, hidden)
    rung.down.copy_(back / QUICK_GELU)
    rung.down_bias.copy_(block["fc2_bias"][kept])
