"""Importance initialisation: rungs begin as CLIP's own blocks, cut to the ladder's width.

`importance` and `fisher`, after LST (Sung et al., arXiv:2206.06522): keep the channels that matter,
cut every weight by the same indices (`cut.py`). `directions`: keep the principal directions of the
residual stream in place of channels (`directions.py`). `down` begins as the map into what is kept,
so that rungs receive the coordinates that their weights read. What a text enters a trunk of image
blocks as is in `align.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from edgeladder.host.model.align import align
from edgeladder.host.model.backbone import Backbone
from edgeladder.host.model.cut import Block, cut, kept_channels
from edgeladder.host.model.directions import basis, cut_directions, gram
from edgeladder.host.model.fisher import Importance
from edgeladder.host.model.ladder import Down, Ladder
from edgeladder.host.model.probe import noise, readout, residual_tokens, run
from edgeladder.host.model.rung import Rung

_SIDES = ("image", "text")


@dataclass(frozen=True)
class Probes:
    """Inputs on which the towers are looked at.

    Args:
        texts: (n, context) tokens of `probe.TEXTS` or the like.
        pixels: (n, 3, S, S), normalised pictures; None takes noise.
    """

    texts: Tensor
    pixels: Tensor | None = None

    def of(self, backbone: Backbone, side: str) -> Tensor:
        """The batch for a side's tower."""
        if side == "text":
            return self.texts
        if self.pixels is not None:
            return self.pixels
        return noise(backbone.image, torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class _Kept:
    """What a side's rungs keep of its residual stream."""

    into: Tensor  # (W, w): what `down` begins as
    cut: Callable[[Rung, Block], None]


def initialize(
    ladder: Ladder,
    backbone: Backbone,
    *,
    importance: Importance | None = None,
    probes: Probes | None = None,
) -> int:
    """Initialise rungs and taps from the backbone's blocks, images' where the trunk is shared.

    Args:
        importance: of the weights that read the residual stream, e.g. their empirical Fisher
            information; None takes their magnitude.
        probes: read by `directions` and by alignments.

    Returns:
        Rungs that were initialised; 0 where the towers have no transformer blocks.
    """
    if ladder.config.initialize == "random":
        return 0
    generator = torch.Generator().manual_seed(0)
    trunk: Tensor | None = None  # what a shared trunk keeps of the image's residual stream
    count = 0
    with torch.no_grad():
        for which in range(len(_SIDES)):
            blocks = _blocks(ladder, backbone, which, importance)
            if trunk is not None and ladder.config.align != "select":
                _enter(ladder, backbone, trunk, probes, generator)
            elif blocks is None:
                _semi_orthogonal(_down(ladder, which), generator)
            else:
                kept = _kept(ladder, backbone, which, blocks, probes)
                _fill(_down(ladder, which), kept.into)
                rungs = _rungs(ladder, which)
                for rung, block in zip(rungs, blocks if rungs else (), strict=True):
                    kept.cut(rung, block)
                count += len(rungs)
                trunk = kept.into if ladder.shared and which == 0 else None
    return count


def _kept(
    ladder: Ladder, backbone: Backbone, which: int, blocks: list[Block], probes: Probes | None
) -> _Kept:
    """Principal directions where they are asked for and there are enough; else channels."""
    width, full = ladder.config.width, len(blocks[0]["ln1_weight"])
    if ladder.config.initialize == "directions" and width <= full:
        side = _SIDES[which]
        values = run(backbone.tower(side), _given(probes, "directions").of(backbone, side))
        tokens = [residual_tokens(values, tap.block) for tap in ladder.sides[which].taps]
        directions, share = basis(gram(tokens, blocks), width)
        return _Kept(directions, partial(cut_directions, directions=directions, share=share))
    channels = kept_channels(blocks, width)
    selection = torch.zeros(full, width)
    selection[channels, torch.arange(width)] = 1.0
    return _Kept(selection, partial(cut, kept=channels))


def _given(probes: Probes | None, what: str) -> Probes:
    if probes is None:
        raise ValueError(f"{what} needs probes of the towers")
    return probes


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
    probes: Probes | None,
    generator: torch.Generator,
) -> None:
    """The text's taps into a trunk that keeps `trunk` (W_i, w) of images, by `ladder.align`."""
    kind = ladder.config.align
    if kind == "semi_orthogonal":
        _semi_orthogonal(ladder.text_down, generator)
        return
    given = _given(probes, f"align {kind}")
    image, text = (readout(backbone.tower(s), given.of(backbone, s)) for s in _SIDES)
    _fill(ladder.text_down, align(kind, image @ trunk, text))


def _fill(down: Down, into: Tensor) -> None:
    """All taps by one map (W, w)."""
    for weight, bias in zip(down.weights, down.bias, strict=True):
        weight.copy_(into.expand_as(weight))
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
