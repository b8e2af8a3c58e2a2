"""CoOp, VPT-deep and MaPLe: prompts inside the backbone, trained through it; to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tools.bench.peers.towers import (
    image_blocks,
    image_features,
    image_width,
    text_features,
    text_tower,
)

Tokenize = Callable[[list[str]], Tensor]
Predictor = Callable[[Tensor], Tensor]  # pixels (B, 3, S, S) -> logits (B, C)


@dataclass(frozen=True)
class Recipe:
    """How the paper trains it."""

    rate: float
    batch: int
    epochs: dict[int, int]  # by shots, the nearest one below


class CoOp(nn.Module):
    """Context tokens before the class name, arXiv:2109.01134: 16, the same for all classes."""

    recipe = Recipe(2e-3, 32, {1: 50, 2: 100, 8: 200})
    length = 16

    def __init__(self, clip: nn.Module, tokenize: Tokenize, names: Sequence[str]):
        super().__init__()
        self.clip = [clip]  # in a list: not a child, so neither trained nor saved
        self.register_buffer(
            "ids", tokenize([" ".join(["X"] * self.length) + f" {n}." for n in names])
        )
        self.context = nn.Parameter(
            0.02 * torch.randn(self.length, text_tower(clip).token_embedding.weight.shape[1])
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.classify(image_features(self.clip[0], pixels))

    def classify(self, image: Tensor) -> Tensor:
        """Logits (B, C) of image features (B, D), which the context does not change."""
        clip = self.clip[0]
        text = text_features(clip, self.ids, [self.context])
        return clip.logit_scale.exp() * image @ text.T

    def predictor(self) -> Predictor:
        """Logits of pixels, the classes encoded once."""
        clip = self.clip[0]
        text = clip.logit_scale.exp() * text_features(clip, self.ids, [self.context]).T
        return lambda pixels: image_features(clip, pixels) @ text


class DeepVpt(nn.Module):
    """Tokens in every block of the image tower, arXiv:2203.12119: 8 each; the text is fixed."""

    recipe = Recipe(2e-3, 32, {1: 50, 2: 100, 8: 200})
    length = 8

    def __init__(self, clip: nn.Module, tokenize: Tokenize, names: Sequence[str]):
        super().__init__()
        self.clip = [clip]
        with torch.no_grad():
            text = text_features(clip, tokenize([f"a photo of a {name}." for name in names]))
        self.register_buffer("text", text)
        tokens = torch.randn(len(image_blocks(clip)), self.length, image_width(clip))
        self.tokens = nn.Parameter(0.02 * tokens)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, C)."""
        clip = self.clip[0]
        image = image_features(clip, pixels, list(self.tokens))
        return clip.logit_scale.exp() * image @ self.text.T

    def predictor(self) -> Predictor:
        """Logits of pixels."""
        return self.forward


class ShortVpt(DeepVpt):
    """The same on MaPLe's schedule, five epochs of batches of 4: what an hour of CPU can train."""

    recipe = Recipe(2.5e-3, 4, {1: 5})


class MaPLe(nn.Module):
    """Coupled prompts in both towers, arXiv:2210.03117: 2 tokens in each of the first 9 blocks."""

    recipe = Recipe(3.5e-3, 4, {1: 5})
    length, depth = 2, 9

    def __init__(self, clip: nn.Module, tokenize: Tokenize, names: Sequence[str]):
        super().__init__()
        self.clip = [clip]
        start = "a photo" if self.length == 2 else " ".join(["X"] * self.length)
        self.register_buffer("ids", tokenize([f"{start} {name}." for name in names]))
        tower = text_tower(clip)
        towers = tower.transformer.resblocks, image_blocks(clip)
        depth = min(self.depth, *(len(blocks) for blocks in towers))
        width = tower.token_embedding.weight.shape[1]
        prompts = 0.02 * torch.randn(depth, self.length, width)
        with torch.no_grad():
            prompts[0] = tower.token_embedding(self.ids[0, 1 : 1 + self.length])
        self.prompts = nn.Parameter(prompts)
        self.couple = nn.ModuleList(nn.Linear(width, image_width(clip)) for _ in range(depth))

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, C)."""
        clip = self.clip[0]
        coupled = [couple(p) for couple, p in zip(self.couple, self.prompts, strict=True)]
        text = text_features(clip, self.ids, list(self.prompts))
        return clip.logit_scale.exp() * image_features(clip, pixels, coupled) @ text.T

    def predictor(self) -> Predictor:
        """Logits of pixels, the classes encoded once."""
        clip = self.clip[0]
        coupled = [couple(p) for couple, p in zip(self.couple, self.prompts, strict=True)]
        text = clip.logit_scale.exp() * text_features(clip, self.ids, list(self.prompts)).T
        return lambda pixels: image_features(clip, pixels, coupled) @ text


METHODS: dict[str, type[CoOp] | type[DeepVpt] | type[MaPLe]] = {
    "coop": CoOp,
    "vpt-deep": DeepVpt,
    "vpt-deep-5": ShortVpt,
    "maple": MaPLe,
}
