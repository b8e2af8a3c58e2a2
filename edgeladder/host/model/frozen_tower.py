"""Frozen towers as chains of pieces: stem, one per block, tail.

A piece maps named tensors to named tensors, so that pieces can be exported one by one and chained
by name on the device. Transformer towers (open_clip's own, timm's, RoBERTa's) are cut at every
block, convolutional ones at their stages; a tower of an unknown layout is one piece, run through
the library's own `forward_intermediates`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import TapConfig
from edgeladder.core.manifest import TapRecord
from edgeladder.host.model.taps import ImageTap, cells


class Piece(nn.Module):
    """Part of a tower with named tensors in and out."""

    def __init__(self, inputs: list[str], outputs: list[str], body: nn.Module):
        super().__init__()
        self.inputs, self.outputs, self.body = inputs, outputs, body

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The outputs, in order."""
        result = self.body(*tensors)
        return result if isinstance(result, tuple) else (result,)


class Tower:
    """A frozen tower: `pieces` for export, `whole` as referee, `block_weights` for the ladder."""

    source = "pixels"
    blocks: int
    size: int  # px of the image side, or context length

    def width(self, block: int) -> int:
        """Channels of the hidden state after a block."""
        raise NotImplementedError

    def pieces(self, taps: list[TapRecord], config: TapConfig) -> list[Piece]:
        """Stem, blocks and tail, the taps on the pieces after which they sit."""
        raise NotImplementedError

    def whole(self, batch: Tensor) -> dict[str, Tensor]:
        """`embedding` by the model's own forward pass."""
        raise NotImplementedError

    def reference(
        self, batch: Tensor, taps: list[TapRecord], config: TapConfig
    ) -> dict[str, Tensor]:
        """Taps by the library's own `forward_intermediates`, and the embedding."""
        raise NotImplementedError

    def block_weights(self, block: int) -> dict[str, Any] | None:
        """A transformer block's weights by role; None where the block is none."""
        return None

    def sample(self) -> Tensor:
        """Two inputs to try pieces on: pictures of noise, or texts that end half way."""
        generator = torch.Generator().manual_seed(0)
        if self.source == "pixels":
            return torch.randn(2, 3, self.size, self.size, generator=generator)
        tokens = torch.randint(2, 256, (2, self.size), generator=generator)
        tokens[:, self.size // 2] = 257
        tokens[:, self.size // 2 + 1 :] = 0
        return tokens


class PlainBlock(nn.Module):
    """open_clip's ResidualAttentionBlock with its attention written out.

    nn.MultiheadAttention exports with its projection cut into constants, which can be neither
    recognised nor mapped from the file.
    """

    def __init__(self, block: Any):
        super().__init__()
        self.block = block
        self.heads = block.attn.num_heads

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(N, T, W) -> (N, T, W)."""
        block, attention = self.block, self.block.attn
        length, width = x.shape[1], x.shape[2]
        joint = functional.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias)
        query, key, value = (
            part.reshape(-1, length, self.heads, width // self.heads).transpose(1, 2)
            for part in joint.chunk(3, -1)
        )
        scores = (query * (width // self.heads) ** -0.5) @ key.transpose(-1, -2)
        if attn_mask is not None:
            scores = scores + attn_mask
        mixed = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(-1, length, width)
        x = x + block.ls_1(attention.out_proj(mixed))
        fed: Tensor = block.ls_2(block.mlp(block.ln_2(x)))
        return x + fed


def plain(block: nn.Module) -> nn.Module:
    """A block in the form that exports best."""
    if isinstance(getattr(block, "attn", None), nn.MultiheadAttention):
        return PlainBlock(block)
    attention: Any = getattr(block, "attn", None)
    if hasattr(attention, "fused_attn"):
        attention.fused_attn = False  # timm: written out instead of the fused operator
    return block


TEXT = ("pool", "selector")  # which position a text is pooled at, and what taps read of it
PADDED_TEXT = (*TEXT, "padding")  # and what is added to the scores of positions without a word
PADDED = -1e4  # added to the score of a position that is none: its share is 0 in any precision


class TappedBlock(nn.Module):
    """A block, its tap if it has one.

    Args:
        block: (N, T, W) -> (N, T, W).
        tap: what is read of it.
        mask: (T, T), added to the scores of every text.
        padded: whether a text's own (N, 1, T) comes with the hidden state and is added as well.
    """

    def __init__(
        self,
        block: nn.Module,
        tap: nn.Module | None,
        mask: Tensor | None = None,
        *,
        padded: bool = False,
    ):
        super().__init__()
        self.block, self.tap, self.padded = plain(block), tap, padded
        if mask is not None:
            self.register_buffer("mask", mask)
        else:
            self.mask = None

    def forward(self, hidden: Tensor, *given: Tensor) -> Any:
        """The block's hidden state, and its tap."""
        mask = self.mask
        if self.padded:
            own, given = given[0].unsqueeze(1), given[1:]  # for all heads
            mask = own if mask is None else own + mask
        hidden = self.block(hidden) if mask is None else self.block(hidden, attn_mask=mask)
        if self.tap is None:
            return hidden
        return hidden, self.tap(hidden, *given)


class TappedStage(nn.Module):
    """A stage of a convolutional network, and what is read of its feature map."""

    def __init__(self, stage: nn.Module, taps: list[ImageTap]):
        super().__init__()
        self.stage, self.taps = stage, nn.ModuleList(taps)

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """(N, C, H, W) -> the next (N, C', H', W'), and a tap (N, T, C') or none."""
        hidden = self.stage(hidden)
        return hidden, *[tap(cells(hidden)) for tap in self.taps]


class Call(nn.Module):
    """Methods of a module as a module: what stems and tails are."""

    def __init__(self, owner: nn.Module, function: Any):
        super().__init__()
        self.owner = owner
        self.function = function

    def forward(self, *tensors: Tensor) -> Any:
        """What the function gives, for torch.export."""
        return self.function(self.owner, *tensors)


def chain(
    source: str,
    stem: nn.Module,
    blocks: list[nn.Module],
    tail: nn.Module,
    tail_outputs: list[str],
    taps: dict[int, nn.Module],
    mask: Tensor | None = None,
    more: Sequence[str] = (),
) -> list[Piece]:
    """Pieces of a transformer tower.

    Args:
        source: name of the stem's input.
        stem, blocks, tail: what the pieces do.
        tail_outputs: names of what the tail gives.
        taps: by the index of the block that they read.
        mask: (T, T), added to every sample's scores.
        more: what the stem gives beside the hidden state, `TEXT` or `PADDED_TEXT`.
    """
    padded = "padding" in more
    pieces = [Piece([source], ["hidden_0", *more], stem)]
    for index, block in enumerate(blocks):
        tap = taps.get(index)
        inputs = [f"hidden_{index}", *(["padding"] if padded else [])]
        inputs += ["selector"] if more and tap is not None else []
        outputs = [f"hidden_{index + 1}", *([f"tap_{index}"] if tap is not None else [])]
        pieces.append(Piece(inputs, outputs, TappedBlock(block, tap, mask, padded=padded)))
    inputs = [f"hidden_{len(blocks)}", *more[:1]]
    pieces.append(Piece(inputs, tail_outputs, tail))
    return pieces


def norms(first: Any, second: Any) -> dict[str, Tensor]:
    """Both layer norms of a block, by our names."""
    return {
        "ln1_weight": first.weight,
        "ln1_bias": first.bias,
        "ln2_weight": second.weight,
        "ln2_bias": second.bias,
    }


def linear(name: str, layer: Any, scale: Any = None) -> dict[str, Tensor]:
    """A linear layer's weight (out, in) and bias (out,), zero where it has none.

    Args:
        name: the role, `out` or `fc1`.
        scale: the module that scales what it gives (LayerScale's `gamma`), folded in.
    """
    bias = layer.bias if layer.bias is not None else torch.zeros(len(layer.weight))
    gamma = getattr(scale, "gamma", None)
    if gamma is None:
        return {f"{name}_weight": layer.weight, f"{name}_bias": bias}
    return {f"{name}_weight": layer.weight * gamma[:, None], f"{name}_bias": bias * gamma}
