"""What a frozen tower does on inputs that no data set need give: noise, and plain sentences."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from edgeladder.core.config import TapConfig
from edgeladder.host.model.frozen_tower import Tower

PICTURES = 16  # of noise
# sentences of things of all kinds; no data set's class names are meant
TEXTS = tuple(
    f"a photo of a {thing}."
    for thing in (
        *("dog", "cat", "horse", "bird", "fish", "insect", "snake", "tree", "mushroom", "leaf"),
        *("chair", "table", "lamp", "bowl", "cup", "bottle", "clock", "book", "phone", "computer"),
        *("car", "bicycle", "train", "boat", "bridge", "road", "house", "tower", "church", "wall"),
        *(
            "mountain",
            "lake",
            "beach",
            "desert",
            "cloud",
            "fire",
            "stone",
            "person",
            "hand",
            "ball",
        ),
    )
)


def noise(tower: Tower, generator: torch.Generator) -> Tensor:
    """Pictures of coarse noise, (16, 3, S, S), spread as normalised pictures are."""
    coarse = torch.randn(PICTURES, 3, 8, 8, generator=generator)
    size = (tower.size, tower.size)
    return functional.interpolate(coarse, size, mode="bilinear", align_corners=False)


def run(tower: Tower, batch: Tensor) -> dict[str, Tensor]:
    """All values between a tower's pieces: `hidden_k`, and of texts `pool` and `selector`."""
    values: dict[str, Tensor] = {tower.source: batch}
    with torch.no_grad():
        for piece in tower.pieces([], TapConfig()):
            found = piece(*[values[name] for name in piece.inputs])
            values |= dict(zip(piece.outputs, found, strict=True))
    return values


def readout(tower: Tower, batch: Tensor) -> Tensor:
    """How the mean unit embedding changes with the last hidden state, all tokens moved alike.

    Args:
        batch: (n, 3, S, S) pixels or (n, context) tokens.

    Returns:
        (D, W).
    """
    values, last = run(tower, batch), tower.pieces([], TapConfig())[-1]
    hidden, *more = [values[name] for name in last.inputs]

    def embedded(moved: Tensor) -> Tensor:
        return functional.normalize(last(hidden + moved, *more)[0], dim=-1).mean(0)

    with torch.enable_grad():
        found = torch.autograd.functional.jacobian(embedded, torch.zeros(hidden.shape[-1]))
    slope: Tensor = found
    return slope


def residual_tokens(values: dict[str, Tensor], block: int) -> Tensor:
    """The tokens (M, W) that stand in the residual stream after a block; of texts, the words."""
    hidden = values[f"hidden_{block + 1}"]
    if "selector" in values:  # padding is no word
        return hidden[values["selector"].sum(1) > 0]
    return hidden.reshape(-1, hidden.shape[-1])
