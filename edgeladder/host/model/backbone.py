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
from edgeladder.host.model import download
from edgeladder.host.model.find_tokenizer import find_encoder, find_tokenizer
from edgeladder.host.model.frozen_tower import Tower
from edgeladder.host.model.licences import UNKNOWN, licence
from edgeladder.host.model.names import LOCAL_MODELS, Named, named, usual_tag
from edgeladder.host.model.supported import require_supported
from edgeladder.host.model.towers import image_tower, text_tower


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


def load_backbone(
    model: str, pretrained: str | None = None, tokenizer: Path | None = None
) -> Backbone:
    """Load a model with its weights.

    What would stop the export is found before the weights are touched: a tower that is not
    supported, a tokenizer or weights that are not at hand.

    Args:
        model: a name in any spelling of `names.named`, `nano` or `nano-vit`.
        pretrained: a tag, a local file, `none` for random weights, None for the usual tag.
        tokenizer: folder with the files of a Hugging Face tokenizer (and a text tower's
            config.json), where the hub is out of reach.

    Raises:
        ConfigError: unknown model or tag, weights or a tokenizer that cannot be downloaded.
        DataError: a weights file that is not one, or of another model.
    """
    meant = named(model)
    name = meant.name
    if name in LOCAL_MODELS:
        loaded: Backbone = importlib.import_module(LOCAL_MODELS[name]).load(pretrained)
        return loaded
    import open_clip

    require_supported(name)
    random = pretrained is not None and pretrained.lower() == "none"
    source = "random" if random else pretrained or meant.tag or _source(meant)
    if not random and not Path(source).is_file():
        _require_weights(open_clip, meant, source)
    words = find_tokenizer(name, tokenizer)
    encoder = find_encoder(name, tokenizer)
    torch.manual_seed(0)  # random weights are reproducible
    logging.getLogger().setLevel(logging.ERROR)  # open_clip warns on the root logger
    network = _create(open_clip, name, None if random else source, encoder)
    network.eval().requires_grad_(False)
    return wrap(
        network,
        name=name,
        pretrained=source if random or not Path(source).is_file() else Path(source).name,
        origin=_origin(open_clip, name, source, random),
        licence=_licence(open_clip, name, source, random),
        tokenizer=words,
    )


def _source(meant: Named) -> str:
    """The usual tag of a model; what a name in a schema of open_clip's says of itself.

    Raises:
        ConfigError: nobody published weights of it.
    """
    tag = meant.name if meant.schema else usual_tag(meant.name)
    if tag is None:
        raise ConfigError(
            f"{meant.name} has no published weights",
            where="--model",
            remedy="give --pretrained FILE, or --pretrained none for random weights",
        )
    return tag


def _require_weights(open_clip: Any, meant: Named, source: str) -> None:
    """Refuse a tag that the model does not have, and weights that are out of reach.

    Raises:
        ConfigError: with the tags there are, or the address to download from.
    """
    name = meant.name
    if name.startswith("hf-hub:"):
        remote: download.Remote | None = download.of_repository(name.removeprefix("hf-hub:"))
    elif meant.schema:
        remote = None
    else:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if source not in tags:
            guess = nearest(source, tags)
            raise ConfigError(
                f"{source!r} is neither a file nor a tag of {name}",
                where="--pretrained",
                remedy=(f"did you mean {guess!r}? " if guess else "")
                + f"tags: {', '.join(tags) or 'none'}; a weights file or `none` works too",
            )
        remote = download.weights(open_clip.get_pretrained_cfg(name, source) or {})
    if remote is not None:
        download.require(
            *(
                remote,
                f"the weights {source!r} of {name}" if source != name else f"{name}'s weights",
            ),
            option="--pretrained FILE",
            instead=", or take --pretrained none for random weights",
        )


def _create(
    open_clip: Any, name: str, source: str | None, encoder: dict[str, Any] | None
) -> nn.Module:
    """The network with random weights, those of a file, or those that a tag names."""
    more = {} if encoder is None else {"text_cfg": encoder}
    if source is None:
        network: nn.Module = open_clip.create_model(
            name, pretrained=None, load_weights=False, **more
        )
        return network
    if Path(source).is_file():
        return _from_file(open_clip, name, source, more)
    return _from_tag(open_clip, name, source, more)


def _from_file(open_clip: Any, name: str, source: str, more: dict[str, Any]) -> nn.Module:
    original = _is_torchscript(Path(source))  # OpenAI's own download, trained with QuickGELU
    network: nn.Module = open_clip.create_model(
        name, pretrained=None, load_weights=False, force_quick_gelu=original, **more
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
            f"cannot load weights: {_cause(error, Path(source))}",
            where=source,
            remedy=f"give a state_dict of {name}, as .safetensors or a plain torch file",
        ) from error
    return network


def _cause(error: Exception, path: Path) -> str:
    """What is wrong with a file of weights, in words; a library may say no more than `101`."""
    said = next(iter(str(error).strip().splitlines()), "").strip(" '\"")
    wordless = not said or " " not in said
    wrong = download.what_is(path)
    if wrong is not None:
        return wrong
    if wordless or "Weights only load failed" in said:
        return f"it is no file of tensors ({type(error).__name__}{': ' * bool(said)}{said})"
    return said


def _from_tag(open_clip: Any, name: str, source: str, more: dict[str, Any]) -> nn.Module:
    schema = source == name  # the name itself says where the weights lie
    known = {} if schema else open_clip.get_pretrained_cfg(name, source) or {}
    quick = source == "openai" or bool(known.get("quick_gelu"))
    try:
        with download.one_voice():
            network: nn.Module = open_clip.create_model(
                name,
                pretrained=None if schema else source,
                force_quick_gelu=quick,
                require_pretrained=True,
                **more,
            )
    except Exception as error:  # the hub raises many kinds
        remote = download.weights(known)
        raise ConfigError(
            f"the weights {source!r} of {name} cannot be loaded: "
            + next(iter(str(error).strip().splitlines()), type(error).__name__),
            where=remote.address if remote is not None else "--model",
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
    if source == name:
        return name
    config = open_clip.get_pretrained_cfg(name, source) or {}
    return config.get("hf_hub") or config.get("url") or f"open_clip tag {source}"


def _licence(open_clip: Any, name: str, source: str, random: bool) -> str:
    if random:
        return "none (random weights)"
    config = {} if source == name else open_clip.get_pretrained_cfg(name, source) or {}
    return UNKNOWN if Path(source).is_file() else licence(source, str(config.get("hf_hub") or ""))


def wrap(
    network: nn.Module, *, name: str, pretrained: str, origin: str, licence: str, tokenizer: Any
) -> Backbone:
    """A backbone around an open_clip CLIP, CoCa or CustomTextCLIP in eval mode."""
    image, text = image_tower(network), text_tower(network, tokenizer)
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
