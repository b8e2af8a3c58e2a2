"""The frozen backbone: any open_clip model, by either spelling of its name."""

from __future__ import annotations

import importlib
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeladder.core.config import TapConfig
from edgeladder.core.errors import ConfigError, DataError
from edgeladder.core.manifest import PreprocessRecord, TapRecord
from edgeladder.core.spelling import nearest
from edgeladder.host.model.clip_towers import ClipImageTower, ClipTextTower
from edgeladder.host.model.frozen_tower import Tower
from edgeladder.host.model.timm_towers import TimmImageTower, TimmStagesTower

# models of edgeladder's own: name -> module with `load(pretrained) -> Backbone`
LOCAL_MODELS = {
    "nano": "edgeladder.host.model.nano_model",
    "nano-vit": "edgeladder.host.model.nano_vit",
}

_USUAL = ("openai", "webli", "datacompdr", "dfn2b", "laion2b_s34b_b79k")  # preferred tags, in order
_OPENAI_LICENCE = "MIT (OpenAI CLIP)"


@dataclass
class Backbone:
    """A frozen dual encoder and what its use needs."""

    name: str
    pretrained: str
    origin: str
    licence: str
    model: nn.Module
    image: Tower
    text: Tower
    embedding_dim: int
    logit_scale: float
    logit_bias: float
    preprocess: PreprocessRecord
    context_length: int
    tokenizer: Any
    # writes the tokenizer's files into a folder, where the model brings a way of its own
    write_tokenizer: Callable[[Path], Any] | None = field(default=None)

    def tower(self, side: str) -> Tower:
        """The `image` or `text` tower."""
        return self.image if side == "image" else self.text

    def block_weights(self, side: str, block: int) -> dict[str, Any] | None:
        """Weights of a transformer block for importance initialisation; None for other blocks."""
        return self.tower(side).block_weights(block)


def canonical(model: str) -> str:
    """open_clip's spelling of a model name: `ViT-B/16` and `ViT-B-16` are the same.

    Raises:
        ConfigError: unknown; the nearest name is suggested.
    """
    if model in LOCAL_MODELS:
        return model
    import open_clip

    known: list[str] = open_clip.list_models()
    folded = {name.lower(): name for name in known}
    wanted = model.replace("/", "-").lower().replace("@", "-")
    if wanted in folded:
        return folded[wanted]
    guess = nearest(wanted, [*folded, *LOCAL_MODELS])
    raise ConfigError(
        f"unknown model {model!r}",
        where="--model",
        remedy=(f"did you mean {folded.get(guess, guess)!r}? " if guess else "")
        + "any open_clip model name works, in its or OpenAI's spelling",
    )


def usual_tag(name: str) -> str | None:
    """The pretrained tag people mean when they name the model alone."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    return next((tag for tag in _USUAL if tag in tags), tags[0] if tags else None)


def load_backbone(model: str, pretrained: str | None = None) -> Backbone:
    """Load a model with its weights.

    Args:
        model: a name, in open_clip's or OpenAI's spelling, `nano` or `nano-vit`.
        pretrained: a tag, a local file, `none` for random weights, None for the usual tag.

    Raises:
        ConfigError: unknown model or tag, weights that cannot be downloaded.
        DataError: a weights file that is not one, or of another model.
    """
    name = canonical(model)
    if name in LOCAL_MODELS:
        loaded: Backbone = importlib.import_module(LOCAL_MODELS[name]).load(pretrained)
        return loaded
    import open_clip

    tag = usual_tag(name) if pretrained is None else pretrained
    random = pretrained is not None and pretrained.lower() == "none"
    if tag is None:
        raise ConfigError(
            f"{name} has no published weights",
            where="--model",
            remedy="give --pretrained FILE, or --pretrained none for random weights",
        )
    source = "random" if random else tag
    torch.manual_seed(0)  # random weights are reproducible
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns on the root logger
    network = _create(open_clip, name, source, random)
    network.eval().requires_grad_(False)
    return wrap(
        network,
        name=name,
        pretrained=source if random or not Path(source).is_file() else Path(source).name,
        origin=_origin(open_clip, name, source, random),
        licence=_licence(open_clip, name, source, random),
        tokenizer=open_clip.get_tokenizer(name) if _tokenizer_at_hand(open_clip, name) else None,
    )


def _tokenizer_at_hand(open_clip: Any, name: str) -> bool:
    config = open_clip.get_model_config(name) or {}
    if "hf_tokenizer_name" not in config.get("text_cfg", {}):
        return True
    try:
        open_clip.get_tokenizer(name)
    except Exception:  # the hub raises many kinds; write_tokenizer says what is missing
        return False
    return True


def _create(open_clip: Any, name: str, source: str, random: bool) -> nn.Module:
    """The network with random weights, those of a file, or those that a tag names."""
    if random:
        network: nn.Module = open_clip.create_model(name, pretrained=None, load_weights=False)
        return network
    if Path(source).is_file():
        return _from_file(open_clip, name, source)
    return _from_tag(open_clip, name, source)


def _from_file(open_clip: Any, name: str, source: str) -> nn.Module:
    original = _is_torchscript(Path(source))  # OpenAI's own download, trained with QuickGELU
    network: nn.Module = open_clip.create_model(
        name, pretrained=None, load_weights=False, force_quick_gelu=original
    )
    try:
        if original:
            state = torch.jit.load(source, map_location="cpu").state_dict()
            for key in ("input_resolution", "context_length", "vocab_size"):
                state.pop(key, None)
            network.load_state_dict({k: v.float() for k, v in state.items()})
        else:
            open_clip.load_checkpoint(network, source, weights_only=True)
    except Exception as error:  # torch, zipfile and safetensors raise many kinds
        raise DataError(
            f"cannot load weights: {str(error).splitlines()[0]}",
            where=source,
            remedy=f"give a state_dict of {name}, as .safetensors or a plain torch file",
        ) from error
    return network


def _from_tag(open_clip: Any, name: str, source: str) -> nn.Module:
    tags = open_clip.list_pretrained_tags_by_model(name)
    if source not in tags:
        guess = nearest(source, tags)
        raise ConfigError(
            f"{source!r} is neither a file nor a tag of {name}",
            where="--pretrained",
            remedy=(f"did you mean {guess!r}? " if guess else "")
            + f"tags: {', '.join(tags) or 'none'}; a weights file or `none` works too",
        )
    known = open_clip.get_pretrained_cfg(name, source) or {}
    quick = source == "openai" or bool(known.get("quick_gelu"))
    try:
        network: nn.Module = open_clip.create_model(name, pretrained=source, force_quick_gelu=quick)
    except Exception as error:  # the hub raises many kinds
        raise ConfigError(
            f"the weights {source!r} of {name} cannot be downloaded: "
            f"{str(error).splitlines()[0][:200]}",
            where="--pretrained",
            remedy="download them elsewhere and give --pretrained FILE, or take --pretrained none "
            "for random weights",
        ) from error
    return network


def _is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; nothing in it is run."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _origin(open_clip: Any, name: str, source: str, random: bool) -> str:
    if random:
        return "random weights, seed 0"
    if Path(source).is_file():
        return f"file {Path(source).name}"
    config = open_clip.get_pretrained_cfg(name, source) or {}
    return config.get("hf_hub") or config.get("url") or f"open_clip tag {source}"


def _licence(open_clip: Any, name: str, source: str, random: bool) -> str:
    if random:
        return "none (random weights)"
    return _OPENAI_LICENCE if source == "openai" else "see the origin of the weights"


def wrap(
    network: nn.Module, *, name: str, pretrained: str, origin: str, licence: str, tokenizer: Any
) -> Backbone:
    """A backbone around an open_clip CLIP or CustomTextCLIP in eval mode."""
    image, text = image_tower(network), ClipTextTower(network)
    scale: Any = network.logit_scale
    bias: Any = getattr(network, "logit_bias", None)
    with torch.no_grad():
        probe = image.whole(torch.zeros(1, 3, image.size, image.size))
    return Backbone(
        name=name,
        pretrained=pretrained,
        origin=origin,
        licence=licence,
        model=network,
        image=image,
        text=text,
        embedding_dim=int(probe["embedding"].shape[-1]),
        logit_scale=float(scale.exp()),
        logit_bias=float(bias) if bias is not None else 0.0,
        preprocess=_preprocess(network, image.size),
        context_length=text.size,
        tokenizer=tokenizer,
    )


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
    raise ConfigError(
        f"image towers of type {type(visual).__name__} are not supported",
        where="--model",
        remedy="take a ViT, or a model whose tower comes from timm",
    )


def _preprocess(network: nn.Module, size: int) -> PreprocessRecord:
    import open_clip

    config: Any = open_clip.get_model_preprocess_cfg(network)
    fill = config.get("fill_color", 0)
    return PreprocessRecord(
        size=size,
        resize_mode=config.get("resize_mode") or "shortest",
        interpolation=config.get("interpolation") or "bicubic",
        mean=list(config["mean"]),
        std=list(config["std"]),
        fill=fill if isinstance(fill, int) else fill[0],
    )


def resolve_taps(backbone: Backbone, side: str, config: TapConfig) -> list[TapRecord]:
    """The taps that a profile's choice means for a tower.

    Raises:
        ConfigError: a block the tower does not have.
    """
    tower = backbone.tower(side)
    blocks = tower.blocks
    if config.blocks is not None:
        chosen = sorted({b % blocks if -blocks <= b < blocks else b for b in config.blocks})
        for block in chosen:
            if not 0 <= block < blocks:
                raise ConfigError(
                    f"tap block {block}, but the {side} tower has blocks 0 to {blocks - 1}",
                    where="ladder.taps.blocks",
                    remedy="choose existing blocks",
                )
    else:
        count = min(config.count, blocks)
        chosen = [round((i + 1) * blocks / count) - 1 for i in range(count)]
    tokens = int(config.class_token) + (config.grid**2 if side == "image" else config.grid)
    if not tokens:
        raise ConfigError(
            "a tap needs tokens", where="ladder.taps", remedy="class_token: true or grid: 2"
        )
    return [
        TapRecord(name=f"tap_{block}", block=block, tokens=tokens, width=tower.width(block))
        for block in chosen
    ]
