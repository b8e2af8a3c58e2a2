"""A model's own tokenizer, found before anything else is done: without it no export ends well."""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Any

from edgeladder.core.errors import ConfigError
from edgeladder.host.model import download
from edgeladder.host.model.supported import definition

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
            f"the tokenizer of {name} cannot be read: {str(error).strip().splitlines()[:1]}",
            where=str(folder or remote.address),
            remedy="--tokenizer FOLDER, with tokenizer.json and tokenizer_config.json",
        ) from error
