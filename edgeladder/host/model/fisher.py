"""Empirical Fisher information of CLIP's blocks on calibration pictures: which weights matter.

LST (Sung et al., arXiv:2206.06522) ranks rows and channels by the magnitude of their weights or by
the empirical Fisher, the mean squared gradient of the loss. The loss here is CLIP's own: the
cross-entropy of its zero-shot logits on labelled pictures.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeladder.core.errors import DataError
from edgeladder.host.model.backbone import Backbone
from edgeladder.runtime.pictures.dataset import open_data, split
from edgeladder.runtime.pictures.decode import decode_square, normalize
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.runtime.towers.tokens import Tokenizer, class_prompts

PICTURES = 64  # that are looked at, classes in turn; a backward pass of the tower each
CLASSES = 64
_WEIGHTS = ("qkv", "fc1")  # what reads the residual stream

Importance = dict[tuple[str, int], dict[str, Tensor]]  # (side, block) -> role -> like its weight


@dataclass(frozen=True)
class Calibration:
    """Labelled pictures that the towers are measured on."""

    pixels: Tensor  # (n, 3, S, S), normalised
    labels: Tensor  # (n,) rows of `tokens`
    tokens: Tensor  # (C, context), one prompt per class


def read_calibration(backbone: Backbone, data: Path, tokenizer: Tokenizer) -> Calibration:
    """At most 64 pictures of an image folder (or .zip, or CSV), classes in turn.

    Raises:
        DataError: fewer than two classes, or no picture that can be read.
    """
    dataset = open_data(data)
    if len(dataset.classes) < 2:
        raise DataError(
            "calibration needs pictures of two classes at least",
            where=str(data),
            remedy="give a folder of class/picture with --calibration",
        )
    shots = max(1, PICTURES // len(dataset.classes))
    pictures = split(dataset, shots, seed=0)[0][:PICTURES]
    classes = sorted({dataset.classes.index(picture.label) for picture in pictures})[:CLASSES]
    squares, labels = [], []
    for picture in pictures:
        label = dataset.classes.index(picture.label)
        if label not in classes:
            continue
        try:
            squares.append(decode_square(picture.read(), backbone.preprocess))
        except UnreadableError:
            continue
        labels.append(classes.index(label))
    if not squares:
        raise DataError("none of the pictures can be read", where=str(data))
    prompts = class_prompts([dataset.names[k] for k in classes], dataset.templates)
    tokens = tokenizer.encode([texts[0] for texts in prompts])
    pixels = normalize(np.stack(squares), backbone.preprocess)
    return Calibration(torch.from_numpy(pixels), torch.tensor(labels), torch.from_numpy(tokens))


def fisher(backbone: Backbone, pixels: Tensor, labels: Tensor, tokens: Tensor) -> Importance:
    """Mean squared gradients of the blocks' reading weights.

    Args:
        pixels: (n, 3, S, S), normalised.
        labels: (n,) rows of `tokens`.
        tokens: (C, context), one prompt per class.

    Returns:
        For each transformer block `qkv` and `fc1`, shaped as the weights: over single pictures
        for the image tower, over the pictures of a class for the text tower.
    """
    found: Importance = {}
    with torch.no_grad():
        image = torch.cat([_unit(backbone.image.whole(p[None])) for p in pixels])
        text = _unit(backbone.text.whole(tokens))
    losses = (
        (
            "image",
            (
                _loss(backbone, _unit(backbone.image.whole(picture[None])), text, label[None])
                for picture, label in zip(pixels, labels, strict=True)
            ),
        ),
        ("text", _text_losses(backbone, tokens, image, labels)),
    )
    for side, each in losses:
        with _trainable(backbone, side) as weights:
            if not weights:
                continue
            squares = [torch.zeros_like(weight) for weight in weights.values()]
            count = 0
            for loss in each:
                gradients = torch.autograd.grad(loss, list(weights.values()), retain_graph=True)
                for total, gradient in zip(squares, gradients, strict=True):
                    total += gradient**2
                count += 1
            for (block, role), total in zip(weights, squares, strict=True):
                found.setdefault((side, block), {})[role] = total / count
    return found


def _text_losses(
    backbone: Backbone, tokens: Tensor, image: Tensor, labels: Tensor
) -> Iterator[Tensor]:
    """One loss per class, from one forward pass of all names."""
    text = _unit(backbone.text.whole(tokens))
    for label in labels.unique():
        rows = labels == label
        yield _loss(backbone, image[rows], text, labels[rows])


def _unit(found: dict[str, Tensor]) -> Tensor:
    return functional.normalize(found["embedding"], dim=-1)


def _loss(backbone: Backbone, image: Tensor, text: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(backbone.logit_scale * image @ text.T, labels)


@contextmanager
def _trainable(backbone: Backbone, side: str) -> Iterator[dict[tuple[int, str], Any]]:
    """A tower's reading weights by (block, role), which gradients reach inside the context."""
    weights: dict[tuple[int, str], Any] = {}
    for block in range(backbone.tower(side).blocks):
        found = backbone.block_weights(side, block)
        if found is not None:
            weights |= {(block, role): found[f"{role}_weight"] for role in _WEIGHTS}
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        yield weights
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
