"""What is tuned on CLIP's finished picture features: a linear probe and CLIP-Adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tools.bench.peers.methods import METHODS, CoOp, DeepVpt, Recipe, Tokenize
from tools.bench.peers.towers import image_features, text_features


class Probe(nn.Module):
    """What classifies finished features of pictures; how, is for each to say."""

    clip: list[nn.Module]  # in a list: not a child, so neither trained nor saved

    def classify(self, image: Tensor) -> Tensor:
        """Logits (B, C) of image features (B, D)."""
        raise NotImplementedError

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (B, C)."""
        return self.classify(image_features(self.clip[0], pixels))

    def predictor(self) -> Callable[[Tensor], Tensor]:
        """Logits of pixels."""
        return self.forward


class LinearProbe(Probe):
    """A linear layer over unit features, the open_clip user's first try; no class names."""

    recipe = Recipe(1.0, 32, {1: 200})

    def __init__(self, clip: nn.Module, tokenize: Tokenize, names: Sequence[str]):
        super().__init__()
        self.clip = [clip]
        width = text_features(clip, tokenize(list(names[:1]))).shape[1]
        self.layer = nn.Linear(width, len(names))

    def classify(self, image: Tensor) -> Tensor:
        """Logits (B, C) of image features (B, D)."""
        found: Tensor = self.layer(image)
        return found


class ClipAdapter(Probe):
    """A bottleneck behind the image tower, arXiv:2110.04544 eq. 3 to 5: reduction 4, ratio 0.2."""

    recipe = Recipe(2e-3, 32, {1: 200})
    reduction, ratio = 4, 0.2

    def __init__(self, clip: nn.Module, tokenize: Tokenize, names: Sequence[str]):
        super().__init__()
        self.clip = [clip]
        with torch.no_grad():
            text = text_features(clip, tokenize([f"a photo of a {name}." for name in names]))
        self.register_buffer("text", text)
        width = text.shape[1]
        self.adapter = nn.Sequential(
            nn.Linear(width, width // self.reduction, bias=False),
            nn.ReLU(),
            nn.Linear(width // self.reduction, width, bias=False),
            nn.ReLU(),
        )

    def classify(self, image: Tensor) -> Tensor:
        """Logits (B, C) of image features (B, D)."""
        mixed = self.ratio * self.adapter(image) + (1 - self.ratio) * image
        scale = self.clip[0].logit_scale.exp()
        found: Tensor = scale * functional.normalize(mixed, dim=-1) @ self.text.T
        return found


PROBES: dict[str, type[Probe]] = {
    "linear-probe": LinearProbe,
    "clip-adapter": ClipAdapter,
}
ALL: dict[str, type[CoOp] | type[DeepVpt] | type[nn.Module]] = {**METHODS, **PROBES}
