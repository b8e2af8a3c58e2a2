"""Importance initialisation: rungs begin as CLIP's own blocks, cut to the ladder's width.

After LST (Sung et al., arXiv:2206.06522): keep the channels that matter, cut every weight by the
same indices. Ours: whole heads are kept together; `down` begins as the selection of the kept
channels, so that the cut blocks receive the coordinates they were trained on; layer norms' affine
parts and the biases that the ladder has no place for are folded into the weights that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgeladder.host.model.backbone import Backbone
from edgeladder.host.model.fisher import Importance
from edgeladder.host.model.ladder import Down, Ladder
from edgeladder.host.model.rung import Rung

_QUICK_GELU = 1.702  # GELU(x) ~ x sigma(1.702 x)


def initialize(ladder: Ladder, backbone: Backbone, *, importance: Importance | None = None) -> int:
    """Initialise rungs and taps from the backbone's blocks, images' where the trunk is shared.

    Args:
        importance: of the weights that read the residual stream, e.g. their empirical Fisher
            information; None takes their magnitude.

    Returns:
        Rungs that were initialised; 0 where the towers have no transformer blocks.
    """
    if ladder.config.initialize == "random":
        return 0
    generator = torch.Generator().manual_seed(0)
    count = 0
    sides = ["image", "text"]
    with torch.no_grad():
        for which, name in enumerate(sides):
            down = ladder.image_down if which == 0 else ladder.text_down
            side = ladder.sides[which]
            blocks = [backbone.block_weights(name, tap.block) for tap in side.taps]
            if any(block is None for block in blocks):
                _semi_orthogonal(down, generator)
                continue
            found = [
                {**block, **_roles(importance, name, tap.block)}
                for block, tap in zip(blocks, side.taps, strict=True)
                if block is not None
            ]
            kept = _channels(found, ladder.config.width)
            _select(down, kept)
            rungs = _rungs(ladder, which)
            for rung, block in zip(rungs, found, strict=True):
                if rung is not None:
                    _cut(rung, block, kept)
                    count += 1
    return count


def _rungs(ladder: Ladder, which: int) -> Sequence[Rung | None]:
    if not ladder.shared:
        modules = ladder.image_rungs if which == 0 else ladder.text_rungs
        return [module for module in modules if isinstance(module, Rung)]
    if which == 1:  # a shared trunk begins as the image tower's blocks, as in Prompt-Ladder
        return [None] * len(ladder.text.taps)
    return [module for module in ladder.rungs if isinstance(module, Rung)][ladder.first[0] :]


def _roles(importance: Importance | None, side: str, block: int) -> dict[str, Tensor]:
    given = {} if importance is None else importance.get((side, block), {})
    return {f"{role}_importance": value for role, value in given.items()}


def _importance(block: dict[str, Any], role: str) -> Tensor:
    """How much each weight of a role matters, shaped as the weight."""
    given = block.get(f"{role}_importance")
    return block[f"{role}_weight"].abs() if given is None else given


def _channels(blocks: list[dict[str, Any]], width: int) -> Tensor:
    """Indices of the `width` channels of the residual stream that the blocks read most."""
    total = torch.zeros(blocks[0]["ln1_weight"].shape[0])
    for block in blocks:
        for norm, role in (("ln1", "qkv"), ("ln2", "fc1")):
            read = _importance(block, role).sum(0)
            # a magnitude counts as large as the norm before it makes the input; Fisher knows that
            fisher = f"{role}_importance" in block
            total += read if fisher else block[f"{norm}_weight"].abs() * read
    if len(total) >= width:
        return total.topk(width).indices.sort().values
    return torch.arange(width) % len(total)  # a narrower tower: channels repeat


def _select(down: Down, kept: Tensor) -> None:
    for weight, bias in zip(down.weights, down.bias, strict=True):
        weight.zero_()
        weight[:, kept, torch.arange(len(kept))] = 1.0
        bias.zero_()


def _semi_orthogonal(down: Down, generator: torch.Generator) -> None:
    """Taps without a block to imitate: directions of equal length, as far apart as they can be."""
    for weight, bias in zip(down.weights, down.bias, strict=True):
        for piece in weight:
            basis, _ = torch.linalg.qr(
                torch.randn(max(piece.shape), min(piece.shape), generator=generator)
            )
            piece.copy_(basis if piece.shape[0] >= piece.shape[1] else basis.T)
        bias.zero_()


def _heads(block: dict[str, Any], heads: int, inner: int) -> tuple[Tensor, Tensor]:
    """Rows of q, k, v that are kept, `inner` in each of `heads`, and their scores' order."""
    width = block["qkv_weight"].shape[1]
    per_head = width // block["heads"]
    parts = _importance(block, "qkv").reshape(3, block["heads"], per_head, width)
    strength = parts.sum((0, 3))  # q, k and v are ranked together
    chosen = strength.sum(1).topk(min(heads, block["heads"])).indices.sort().values
    chosen = chosen[torch.arange(heads) % len(chosen)]
    rows = []
    for head in chosen:
        best = strength[head].topk(min(inner, per_head)).indices.sort().values
        best = best[torch.arange(inner) % len(best)]
        rows.append(head * per_head + best)
    return torch.cat(rows), chosen


def _cut(rung: Rung, block: dict[str, Any], kept: Tensor) -> None:
    """One rung from one block, cut to the kept channels."""
    width, heads = rung.width, rung.heads
    inner = width // heads
    full = block["qkv_weight"].shape[1]
    rows, _ = _heads(block, heads, inner)
    gain = (full / width) ** 0.5  # fewer inputs: keep the size of the sums
    query, key, value = block["qkv_weight"].reshape(3, full, full)
    query_bias = block["qkv_bias"].reshape(3, full)[0]
    scale1, shift1 = block["ln1_weight"][kept], block["ln1_bias"][kept]
    temperature = (full // block["heads"]) ** -0.5 * (full / block["heads"] / inner) ** 0.5

    def reads(weight: Tensor) -> Tensor:  # (out, in) -> (in, out), the norm's scale folded in
        return (weight[rows][:, kept] * scale1).T * gain

    rung.query.copy_(reads(query) * temperature)
    rung.query_bias.copy_((query_bias[rows] + query[rows][:, kept] @ shift1 * gain) * temperature)
    rung.key_value.copy_(torch.cat([reads(key), reads(value)], 1))
    rung.out.copy_(block["out_weight"][kept][:, rows].T * gain)
    hidden = rung.up.shape[1]
    first, second = block["fc1_weight"], block["fc2_weight"]
    best = _importance(block, "fc1").sum(1).topk(min(hidden, first.shape[0])).indices.sort().values
    best = best[torch.arange(hidden) % len(best)]
    scale2, shift2 = block["ln2_weight"][kept], block["ln2_bias"][kept]
    # QuickGELU(x) = SiLU(1.702 x) / 1.702, so the ladder's SiLU stands for either GELU
    rung.up.copy_((first[best][:, kept] * scale2).T * gain * _QUICK_GELU)
    rung.up_bias.copy_(
        (block["fc1_bias"][best] + first[best][:, kept] @ shift2 * gain) * _QUICK_GELU
    )
    rung.down.copy_(second[kept][:, best].T * (first.shape[0] / hidden) ** 0.5 / _QUICK_GELU)
