"""Frozen towers as chains of pieces: stem, one per block, tail.

A piece maps named tensors to named tensors, so that pieces can be exported one by one and chained
by name on the device. Transformer towers (open_clip's own and timm's) are cut at every block; any
other timm tower is one piece, run through the library's own `forward_intermediates`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import TapConfig
from edgeladder.core.manifest import TapRecord

TAP_EPSILON = 1e-5


def standardise(tokens: Tensor) -> Tensor:
    """Mean 0, variance 1 over the channels of each token: how taps leave the backbone."""
    return functional.layer_norm(tokens, tokens.shape[-1:], eps=TAP_EPSILON)


def grid_pool(height: int, width: int, grid: int) -> Tensor:
    """Adaptive mean pooling of height x width cells to grid x grid, as a matrix (g^2, h w)."""
    cells = torch.eye(height * width).reshape(height * width, height, width)
    return functional.adaptive_avg_pool2d(cells, grid).reshape(height * width, -1).T.contiguous()


class ImageTap(nn.Module):
    """(N, [1 +] P, W) tokens -> (N, T, W): class token (or mean), then the pooled grid."""

    matrix: Tensor

    def __init__(self, side: int, prefix: int, config: TapConfig):
        super().__init__()
        cells = side * side
        rows = []
        if config.class_token:
            first = torch.zeros(1, prefix + cells)
            if prefix:
                first[0, 0] = 1.0
            else:
                first[0] = 1.0 / cells
            rows.append(first)
        if config.grid:
            pooled = grid_pool(side, side, config.grid)
            rows.append(functional.pad(pooled, (prefix, 0)))
        self.register_buffer("matrix", torch.cat(rows))

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool and standardise."""
        return standardise(self.matrix @ tokens)


class TextSelector(nn.Module):
    """Token ids (N, ctx) -> what is read of a text, as weights over its positions.

    `pool` (N, 1, ctx) picks the position that the model pools; `selector` (N, T, ctx) that and
    the means of `grid` spans over the words. A text of fewer words than spans repeats their mean.
    """

    def __init__(self, pool: str, end: int | None, pad: int, first: int, config: TapConfig):
        super().__init__()
        self.pool, self.end, self.pad, self.first = pool, end, pad, first
        self.config = config

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Both, float32."""
        length = tokens.shape[1]
        place = torch.arange(length).unsqueeze(0)  # (1, ctx)
        if self.pool == "argmax":  # in float: onnxruntime has no ArgMax of 64-bit integers
            stop = tokens.float().argmax(-1, keepdim=True)
        elif self.pool == "eos":
            stop = (tokens == self.end).int().argmax(-1, keepdim=True)
        else:
            stop = (tokens != self.pad).long().sum(-1, keepdim=True)
        at = {"first": 0, "last": length - 1}.get(self.pool)
        pooled = (place == stop) if at is None else (place == at) & (stop >= 0)
        pool = pooled.float()
        rows = [pool] if self.config.class_token else []
        words = (place >= self.first) & (place < stop)
        everything = words.float()
        everything = everything / torch.clamp(everything.sum(-1, keepdim=True), min=1.0)
        spans = self.config.grid
        count = torch.clamp(stop - self.first, min=1)
        for span in range(spans):
            scaled = (place - self.first) * spans
            inside = words & (scaled >= span * count) & (scaled < (span + 1) * count)
            piece = inside.float()
            size = piece.sum(-1, keepdim=True)
            mean = piece / torch.clamp(size, min=1.0)
            rows.append(torch.where(size > 0, mean, everything))
        return pool.unsqueeze(1), torch.stack(rows, 1)


class TextTap(nn.Module):
    """(N, ctx, W) and `selector` (N, T, ctx) -> (N, T, W).

    All weights of a span are equal, so what half precision does to them on disk is a common
    factor, which standardising removes.
    """

    def forward(self, hidden: Tensor, selector: Tensor) -> Tensor:
        """Pool and standardise."""
        return standardise(torch.matmul(selector, hidden))


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


class TappedBlock(nn.Module):
    """A block, its tap if it has one."""

    def __init__(self, block: nn.Module, tap: nn.Module | None, mask: Tensor | None = None):
        super().__init__()
        self.block, self.tap = plain(block), tap
        if mask is not None:
            self.register_buffer("mask", mask)
        else:
            self.mask = None

    def forward(self, hidden: Tensor, *selector: Tensor) -> Any:
        """The block's hidden state, and its tap."""
        mask = self.mask
        hidden = self.block(hidden) if mask is None else self.block(hidden, attn_mask=mask)
        if self.tap is None:
            return hidden
        return hidden, self.tap(hidden, *selector)


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
    text: bool = False,
) -> list[Piece]:
    """Pieces of a transformer tower; a text stem also says what is read of each text."""
    more = ["pool", "selector"] if text else []
    pieces = [Piece([source], ["hidden_0", *more], stem)]
    for index, block in enumerate(blocks):
        tap = taps.get(index)
        inputs = [f"hidden_{index}", *(more[1:] if tap is not None else [])]
        outputs = [f"hidden_{index + 1}", *([f"tap_{index}"] if tap is not None else [])]
        pieces.append(Piece(inputs, outputs, TappedBlock(block, tap, mask)))
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
