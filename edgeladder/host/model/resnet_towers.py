"""OpenAI's ResNets (RN50 to RN50x64): cut at their stages, pooled by attention at the end.

Radford et al., arXiv:2103.00020, section 2.4: a stem of three convolutions, four stages of
bottlenecks that average before they stride, and one query, the mean of all cells, that attends to
them. Batch norms are folded into the convolutions before them, so that weights are stored as they
are used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import fusion

from edgeladder.core.config import TapConfig
from edgeladder.core.manifest import TapRecord
from edgeladder.host.model.frozen_tower import Piece, TappedStage, Tower
from edgeladder.host.model.taps import ImageTap, cells

# of one piece: RN50x64 has 36 bottlenecks in a stage, a gigabyte if they went together
_MOST, _MOST_BYTES = 8, 32_000_000


class ResNetTower(Tower):
    """open_clip's ModifiedResNet; its blocks are its stem and its four stages."""

    def __init__(self, visual: Any):
        self.visual = visual
        size = visual.image_size
        self.size = int(size[0] if isinstance(size, (tuple, list)) else size)
        with torch.no_grad():
            found = visual.forward_intermediates(torch.zeros(1, 3, self.size, self.size))
        # (C, H, W) of each level
        self.shapes = [tuple(level.shape[1:]) for level in found["image_intermediates"]]
        self.blocks = len(self.shapes)

    def width(self, block: int) -> int:
        return int(self.shapes[block][0])

    def _tap(self, tap: TapRecord, config: TapConfig) -> ImageTap:
        return ImageTap(self.shapes[tap.block][1], 0, config)

    def pieces(self, taps: list[TapRecord], config: TapConfig) -> list[Piece]:
        visual, source = self.visual, self.source
        pieces: list[Piece] = []
        stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        levels: list[list[nn.Module]] = [[Stem(visual)], *map(_parts, stages)]
        for level, parts in enumerate(levels):
            here = [tap for tap in taps if tap.block == level]
            for number, part in enumerate(parts, 1):
                read = here if number == len(parts) else []
                name = f"hidden_{len(pieces)}"
                body = TappedStage(part, [self._tap(tap, config) for tap in read])
                pieces.append(Piece([source], [name, *[tap.name for tap in read]], body))
                source = name
        outputs = ["embedding", "embedding_pre"]
        return [*pieces, Piece([source], outputs, AttentionPool(visual.attnpool))]

    def whole(self, batch: Tensor) -> dict[str, Tensor]:
        return {"embedding": self.visual(batch)}

    def reference(
        self, batch: Tensor, taps: list[TapRecord], config: TapConfig
    ) -> dict[str, Tensor]:
        found = self.visual.forward_intermediates(batch, indices=[tap.block for tap in taps])
        result = {"embedding": found["image_features"]}
        for tap, level in zip(taps, found["image_intermediates"], strict=True):
            result[tap.name] = self._tap(tap, config)(cells(level))
        return result


def _parts(stage: nn.Sequential) -> list[nn.Module]:
    """A stage's bottlenecks in pieces that are not too large; each holds one at least."""
    parts: list[list[nn.Module]] = []
    room = 0
    for block in map(Bottleneck, stage):
        size = sum(4 * weight.numel() for weight in block.parameters())
        if not parts or len(parts[-1]) == _MOST or size > room:
            parts, room = [*parts, []], _MOST_BYTES
        parts[-1].append(block)
        room -= size
    return [nn.Sequential(*part) for part in parts]


def _folded(convolution: Any, norm: Any) -> nn.Conv2d:
    """A convolution that does its batch norm as well."""
    folded: nn.Conv2d = fusion.fuse_conv_bn_eval(convolution, norm)
    return folded.requires_grad_(False)


class Stem(nn.Module):
    """Three convolutions, and an average over 2 x 2 cells."""

    def __init__(self, visual: Any):
        super().__init__()
        pairs = [(visual.conv1, visual.bn1), (visual.conv2, visual.bn2), (visual.conv3, visual.bn3)]
        self.convolutions = nn.ModuleList(_folded(*pair) for pair in pairs)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, C, S / 4, S / 4)."""
        for convolution in self.convolutions:
            hidden = functional.relu(convolution(hidden))
        return functional.avg_pool2d(hidden, 2)


class Bottleneck(nn.Module):
    """open_clip's Bottleneck with its norms folded in, and nothing done in place."""

    def __init__(self, block: Any):
        super().__init__()
        self.first = _folded(block.conv1, block.bn1)
        self.second = _folded(block.conv2, block.bn2)
        self.third = _folded(block.conv3, block.bn3)
        self.stride = int(block.stride)
        shortcut = block.downsample
        self.shortcut = None if shortcut is None else _folded(shortcut[1], shortcut[2])

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H / stride, W / stride)."""
        inner = functional.relu(self.first(hidden))
        inner = functional.relu(self.second(inner))
        inner = self.third(self._smaller(inner))
        if self.shortcut is not None:
            hidden = self.shortcut(self._smaller(hidden))
        return functional.relu(inner + hidden)

    def _smaller(self, hidden: Tensor) -> Tensor:
        return functional.avg_pool2d(hidden, self.stride) if self.stride > 1 else hidden


class AttentionPool(nn.Module):
    """open_clip's AttentionPool2d for the one query whose answer is used, written out."""

    def __init__(self, pool: Any):
        super().__init__()
        self.pool = pool

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) -> the embedding (N, D), and what its last layer is given (N, C)."""
        pool, heads = self.pool, self.pool.num_heads
        tokens = cells(hidden)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.positional_embedding
        width = tokens.shape[2]
        size = width // heads
        query = pool.q_proj(tokens[:, :1]).reshape(-1, 1, heads, size).transpose(1, 2)
        key, value = (
            layer(tokens).reshape(-1, tokens.shape[1], heads, size).transpose(1, 2)
            for layer in (pool.k_proj, pool.v_proj)
        )
        mixed = torch.softmax((query * size**-0.5) @ key.transpose(-1, -2), -1) @ value
        mixed = mixed.transpose(1, 2).reshape(-1, width)
        return pool.c_proj(mixed), mixed
