"""A model's own tokenizer, and its text tower's definition, found before anything else is done."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

from edgeladder.core.errors import ConfigError
from edgeladder.host.model import download
from edgeladder.host.model.supported import definition

_CONFIG = "config.json"
_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")


def find_tokenizer(name: str, folder: Path | None = None) -> Any:
    """open_clip's tokenizer of a model.

    Args:
        name: open_clip's name of the model.
        folder: with a Hugging Face tokenizer's files; None: the hub's cache, or the hub.

    Raises:
        ConfigError: it needs the transformers library, or files that are neither here nor within
            reach; or a folder was given for a model that brings its own.
    """
    import open_clip

    text = dict(definition(name).get("text_cfg") or {})
    source = str(text.get("hf_tokenizer_name") or "")
    folder = folder or _own_folder(name, *_FILES)
    if not source:
        if folder is not None:
            raise ConfigError(
                f"{name} brings its own tokenizer", where="--tokenizer", remedy="leave it out"
            )
        return open_clip.get_tokenizer(name)
    if util.find_spec("transformers") is None:
        raise ConfigError(
            f"the tokenizer of {name} ({source}) needs transformers, which is not installed here",
            where="--model",
            remedy="pip install 'edgeladder[host,hf]', or take a model with CLIP's own tokenizer, "
            "such as ViT-B/16 or MobileCLIP-S1",
        )
    remote = download.Remote(source, _FILES)
    if folder is None and Path(source).is_dir():
        folder = Path(source)
    if folder is None:
        download.require(
            *(remote, f"the files of {name}'s tokenizer"),
            option="--tokenizer FOLDER",
            instead=" (tokenizer_config.json and special_tokens_map.json too)",
        )
    try:
        if folder is None:
            return open_clip.get_tokenizer(name)
        options = dict(text.get("tokenizer_kwargs") or {})
        length = int(text.get("context_length") or 77)
        return open_clip.tokenizer.HFTokenizer(str(folder), context_length=length, **options)
    except Exception as error:  # transformers and the hub raise many kinds
        raise ConfigError(
            f"the tokenizer of {name} cannot be read: "
            + next(iter(str(error).strip().splitlines()), type(error).__name__),
            where=str(folder or remote.address),
            remedy="--tokenizer FOLDER, with tokenizer.json and tokenizer_config.json",
        ) from error


def find_encoder(name: str, folder: Path | None = None) -> dict[str, Any] | None:
    """open_clip's definition of a text tower of transformers; None where it is open_clip's own.

    No weights of it are named: those of the whole model hold them.

    Args:
        name: open_clip's name of the model.
        folder: where its config.json may lie; else in the hub's cache, or on the hub.

    Raises:
        ConfigError: its definition is neither here nor within reach, or cannot be read.
    """
    text = dict(definition(name).get("text_cfg") or {})
    source = str(text.get("hf_model_name") or "")
    if not source:
        return None
    given = [folder, _own_folder(name, _CONFIG), Path(source)]
    here = next((place for place in given if place and (place / _CONFIG).is_file()), None)
    if here is None:
        download.require(
            *(download.Remote(source, (_CONFIG,)), f"the definition of {name}'s text tower"),
            option="--tokenizer FOLDER",
            instead=", among the tokenizer's files",
        )
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(str(here or source))
    except Exception as error:  # transformers and the hub raise many kinds
        raise ConfigError(
            f"the definition of {name}'s text tower cannot be read: "
            + next(iter(str(error).strip().splitlines()), type(error).__name__),
            where=str(here or source),
            remedy=f"--tokenizer FOLDER, with {source}'s {_CONFIG}",
        ) from error
    return {**text, "hf_model_name": str(here or source), "hf_model_pretrained": False}


def _own_folder(name: str, *files: str) -> Path | None:
    """The folder of a model that is named by its folder, where it holds one of these files."""
    folder = Path(name.removeprefix("local-dir:"))
    if folder == Path(name) or not any((folder / file).is_file() for file in files):
        return None
    return folder
