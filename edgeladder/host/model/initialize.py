"""Importance initialisation: rungs begin as CLIP's own blocks, cut to the ladder's width.

After LST (Sung et al., arXiv:2206.06522): keep the channels that matter, cut every weight by the
same indices. Ours: whole heads are kept together; `down` begins as the selection of the kept
channels, so that the cut blocks receive the coordinates they were trained on. What a block becomes
is in `cut.py`; what a text enters a trunk of image blocks as, in `align.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgeladder.host.model.align import align, noise, readout
from edgeladder.host.model.backbone import Backbone
from edgeladder.host.model.cut import Block, cut, kept_channels
from edgeladder.host.model.fisher import Importance
from edgeladder.host.model.ladder import Down, Ladder
from edgeladder.host.model.rung import Rung

_SIDES = ("image", "text")
# what the text tower is taken as linear around, where an alignment asks for it
TEXTS = ("a photo of a dog.", "a photo of a chair.", "a photo of a forest.", "a photo of a bowl.")


def initialize(
    ladder: Ladder,
    backbone: Backbone,
    *,
    importance: Importance | None = None,
    texts: Tensor | None = None,
) -> int:
    """Initialise rungs and taps from the backbone's blocks, images' where the trunk is shared.

    Args:
        importance: of the weights that read the residual stream, e.g. their empirical Fisher
            information; None takes their magnitude.
        texts: (n, context) tokens of `TEXTS` or the like; read where `ladder.align` needs them.

    Returns:
        Rungs that were initialised; 0 where the towers have no transformer blocks.
    """
    if ladder.config.initialize == "random":
        return 0
    generator = torch.Generator().manual_seed(0)
    trunk: Tensor | None = None  # the image's channels that a shared trunk was cut to
    count = 0
    with torch.no_grad():
        for which in range(len(_SIDES)):
            blocks = _blocks(ladder, backbone, which, importance)
            if trunk is not None and ladder.config.align != "select":
                _enter(ladder, backbone, trunk, texts, generator)
            elif blocks is None:
                _semi_orthogonal(_down(ladder, which), generator)
            else:
                kept = kept_channels(blocks, ladder.config.width)
                _select(_down(ladder, which), kept)
                rungs = _rungs(ladder, which)
                for rung, block in zip(rungs, blocks if rungs else (), strict=True):
                    cut(rung, block, kept)
                count += len(rungs)
                trunk = kept if ladder.shared and which == 0 else None
    return count


def _down(ladder: Ladder, which: int) -> Down:
    return ladder.image_down if which == 0 else ladder.text_down


def _rungs(ladder: Ladder, which: int) -> Sequence[Rung]:
    """The rungs that are cut from a side's blocks."""
    if not ladder.shared:
        modules = ladder.image_rungs if which == 0 else ladder.text_rungs
        return [module for module in modules if isinstance(module, Rung)]
    if which == 1:  # a shared trunk begins as the image tower's blocks, as in Prompt-Ladder
        return []
    return [module for module in ladder.rungs if isinstance(module, Rung)][ladder.first[0] :]


def _blocks(
    ladder: Ladder, backbone: Backbone, which: int, importance: Importance | None
) -> list[Block] | None:
    """The blocks that a side's taps follow, their importance among their weights."""
    name, found = _SIDES[which], []
    for tap in ladder.sides[which].taps:
        block = backbone.block_weights(name, tap.block)
        if block is None:
            return None
        given = {} if importance is None else importance.get((name, tap.block), {})
        found.append({**block, **{f"{role}_importance": value for role, value in given.items()}})
    return found


def _enter(
    ladder: Ladder,
    backbone: Backbone,
    trunk: Tensor,
    texts: Tensor | None,
    generator: torch.Generator,
) -> None:
    """The text's taps into a trunk of the image's channels `trunk` (w,), by `ladder.align`."""
    kind, down = ladder.config.align, ladder.text_down
    if kind == "semi_orthogonal":
        _semi_orthogonal(down, generator)
        return
    if texts is None:
        raise ValueError(f"align {kind} needs the tokens of some texts")
    image = readout(backbone.image, noise(backbone.image, generator))
    made = align(kind, image[:, trunk], readout(backbone.text, texts))
    for weight, bias in zip(down.weights, down.bias, strict=True):
        weight.copy_(made.expand_as(weight))
        bias.zero_()


def _select(down: Down, kept: Tensor) -> None:
    """Channels `kept` (w,) as they are."""
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
