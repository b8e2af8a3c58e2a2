"""Which class cuts a network's towers."""

from __future__ import annotations

from typing import Any

from torch import nn

from edgeladder.core.errors import ConfigError
from edgeladder.host.model.clip_towers import ClipImageTower, ClipTextTower
from edgeladder.host.model.frozen_tower import Tower
from edgeladder.host.model.hf_towers import RobertaTower
from edgeladder.host.model.resnet_towers import ResNetTower
from edgeladder.host.model.timm_towers import TimmImageTower, TimmStagesTower

_CONTEXT = 77  # tokens of a text, where neither model nor tokenizer says: open_clip's default


def image_tower(network: Any) -> Tower:
    """The image tower of an open_clip model.

    Raises:
        ConfigError: of a type that cannot be cut.
    """
    visual = network.visual
    if hasattr(visual, "trunk"):
        size = visual.image_size
        size = int(size[0] if isinstance(size, (tuple, list)) else size)
        trunk = visual.trunk
        flat = hasattr(trunk, "_pos_embed") and hasattr(trunk, "patch_embed")
        if flat and hasattr(trunk, "blocks"):
            return TimmImageTower(visual, size)
        return TimmStagesTower(visual, size)
    if hasattr(visual, "transformer") and hasattr(visual, "_embeds"):
        return ClipImageTower(visual)
    if isinstance(getattr(visual, "attnpool", None), nn.Module) and hasattr(visual, "layer4"):
        return ResNetTower(visual)
    raise ConfigError(
        f"image towers of type {type(visual).__name__} are not supported",
        where="--model",
        remedy="take a ViT, a ResNet of OpenAI's, or a model whose tower comes from timm",
    )


def text_tower(network: Any, tokenizer: Any) -> Tower:
    """The text tower of an open_clip model.

    Args:
        network: the model.
        tokenizer: its own, which says how long a text is where the model does not.

    Raises:
        ConfigError: of a type that cannot be cut.
    """
    inner = getattr(network, "text", None)
    if hasattr(inner, "pooler") and hasattr(inner, "config"):
        return RobertaTower(inner, int(getattr(tokenizer, "context_length", None) or _CONTEXT))
    return ClipTextTower(network)
