"""Which of open_clip's models can be cut into segments, told from their definition alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeladder.core.errors import ConfigError
from edgeladder.host.model.names import LOCAL_MODELS, usual_tag

_MANY_LANGUAGES = "ViT-B-16-SigLIP2"  # in place of text towers that were made for many languages
_FALLBACK = "ViT-B-32"
ENCODERS = ("roberta", "xlm-roberta")  # `model_type` of encoders of transformers that can be cut


def definition(name: str) -> Mapping[str, Any]:
    """open_clip's definition of a model; empty where only the hub has it."""
    import open_clip

    if name.startswith("local-dir:"):
        file = Path(name.removeprefix("local-dir:")) / "open_clip_config.json"
        if not file.is_file():
            raise ConfigError(
                f"no open_clip_config.json in {file.parent}",
                where="--model",
                remedy="name the folder that holds it and the weights beside it",
            )
        try:
            found = json.loads(file.read_text(encoding="utf-8"))["model_cfg"]
        except (ValueError, KeyError, TypeError):
            found = None
        if not isinstance(found, dict):
            raise ConfigError(
                "no definition of a model: `model_cfg` is missing",
                where=str(file),
                remedy="download the folder again",
            )
        return found
    return open_clip.get_model_config(name) or {} if not name.startswith("hf-hub:") else {}


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a model cannot be exported; None where it can."""
    text, vision = config.get("text_cfg") or {}, config.get("vision_cfg") or {}
    if text.get("hf_model_name") and not _is_cut(text):
        return (
            f"its text tower is {text['hf_model_name']}; of transformers' encoders, RoBERTa and "
            "XLM-RoBERTa can be cut"
        )
    if isinstance(vision.get("attentional_pool"), str):
        return "its image tower pools by two attentional poolers"
    return None


def _is_cut(text: Mapping[str, Any]) -> bool:
    """Whether a text tower of transformers is one that fits, told without downloading anything."""
    name = str(text["hf_model_name"])
    config = Path(name) / "config.json"
    if config.is_file():
        try:
            kind = str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
        except (ValueError, AttributeError, OSError):
            return False
    else:
        model = name.rpartition("/")[2]
        kind = next((kind for kind in reversed(ENCODERS) if model.startswith(kind)), "")
    return kind in ENCODERS and text.get("hf_pooler_type") in (None, "mean_pooler")


def require_supported(name: str) -> None:
    """Refuse by name, before any work, what cannot be exported.

    Raises:
        ConfigError: with the nearest model that can.
    """
    if name in LOCAL_MODELS:
        return
    config = definition(name)
    reason = refusal(config)
    if reason is not None:
        raise ConfigError(
            f"{name} is not supported ({reason})",
            where="--model",
            remedy=f"take {instead(name, config)}; `edgeladder models` lists what works",
        )


def instead(name: str, config: Mapping[str, Any]) -> str:
    """The nearest model that works: the same image tower, or the same languages."""
    import open_clip

    text = str((config.get("text_cfg") or {}).get("hf_model_name") or "")
    languages = bool(text) and not text.startswith("roberta")
    vision = _tower(config)
    for other in open_clip.list_models():
        candidate = open_clip.get_model_config(other) or {}
        encoder = str((candidate.get("text_cfg") or {}).get("hf_model_name") or "")
        if languages != encoder.startswith("xlm-"):
            continue
        if refusal(candidate) is None and _tower(candidate) == vision and usual_tag(other):
            return str(other)
    return _MANY_LANGUAGES if languages else _FALLBACK


def _tower(config: Mapping[str, Any]) -> dict[str, Any]:
    """What makes an image tower: its kind, depth, width, patch and picture."""
    vision = dict(config.get("vision_cfg") or {})
    keys = ("timm_model_name", "image_size", "layers", "width", "patch_size")
    return {key: vision.get(key) for key in keys}
