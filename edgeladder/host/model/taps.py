"""What is read of a frozen tower's hidden states: class tokens, pooled cells, spans of words."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.config import TapConfig

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

    `pool` (N, 1, ctx) picks the position that the model pools, or the mean that it takes;
    `selector` (N, T, ctx) that and the means of `grid` spans over the words. A text of fewer words
    than spans repeats their mean. Where the model appends a class token, there is one position
    more, which is the one that it pools.
    """

    def __init__(self, pool: str, end: int | None, pad: int, first: int, config: TapConfig):
        """What is read.

        Args:
            pool: `argmax`, `eos`, `first`, `last`, `appended` or `mean` (over all but padding).
            end: id of the end token, for `eos`.
            pad: id of padding.
            first: position of the first word.
            config: which tokens a tap has.
        """
        super().__init__()
        self.pool, self.end, self.pad, self.first = pool, end, pad, first
        self.config = config

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Both, float32."""
        length = tokens.shape[1] + (self.pool == "appended")
        place = torch.arange(length).unsqueeze(0)  # (1, ctx)
        if self.pool in ("argmax", "appended"):
            # in float: onnxruntime has no ArgMax of 64-bit integers
            stop = tokens.float().argmax(-1, keepdim=True)
        elif self.pool == "eos":
            stop = (tokens == self.end).int().argmax(-1, keepdim=True)
        else:
            stop = (tokens != self.pad).long().sum(-1, keepdim=True)
        if self.pool == "mean":
            pool = (tokens != self.pad).float()
            pool = pool / torch.clamp(pool.sum(-1, keepdim=True), min=1.0)
            stop = stop - 1  # the end token is no word
        else:
            at = {"first": 0, "last": length - 1, "appended": length - 1}.get(self.pool)
            pool = ((place == stop) if at is None else (place == at) & (stop >= 0)).float()
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


def cells(features: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H W, C)."""
    return features.flatten(2).transpose(1, 2)
