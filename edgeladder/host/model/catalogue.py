"""What can be exported: open_clip's registry with sizes and licences, and what is refused and why.

Nothing is downloaded and no network is built: definitions come from open_clip, parameters from a
table that was counted once (`parameters.json`, in millions, image and text tower).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

from edgeladder.host.model.licences import licence
from edgeladder.host.model.names import LOCAL_MODELS, usual_tag
from edgeladder.host.model.supported import definition, instead, refusal

_BYTES = 4  # a parameter, as exported by default


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A model with published weights."""

    name: str
    pretrained: str  # the tag that is taken where none is named
    tags: int  # sets of weights there are
    pixels: int | None  # side of its pictures
    image_millions: float | None  # parameters; None: not counted for this version of open_clip
    text_millions: float | None
    bytes: int | None  # of both towers in fp32
    licence: str
    works: bool
    reason: str | None = None  # why it is refused
    instead: str | None = None  # the nearest one that works


def models() -> list[Listed]:
    """All models with published weights, those that are refused among them, by name."""
    return [*_local(), *_published()]


def _local() -> Iterator[Listed]:
    for name in LOCAL_MODELS:
        if name == "nano":  # the other is for measuring, and its weights are nobody's
            yield Listed(
                name=name, pretrained="shipped", tags=1, pixels=224, image_millions=None,
                text_millions=None, bytes=None, licence="Apache-2.0", works=True,
            )  # fmt: skip


def _published() -> Iterator[Listed]:
    import open_clip

    counted = _counted()
    for name in sorted(open_clip.list_models(), key=str.lower):
        tag = usual_tag(name)
        if tag is None:
            continue
        config = definition(name)
        weights = open_clip.get_pretrained_cfg(name, tag) or {}
        why = refusal(config)
        image, text = counted.get(name.removesuffix("-quickgelu"), (None, None))
        yield Listed(
            name=name,
            pretrained=tag,
            tags=len(open_clip.list_pretrained_tags_by_model(name)),
            pixels=_side((config.get("vision_cfg") or {}).get("image_size")),
            image_millions=image,
            text_millions=text,
            bytes=None if image is None or text is None else round((image + text) * 1e6) * _BYTES,
            licence=licence(tag, str(weights.get("hf_hub") or "")),
            works=why is None,
            reason=why,
            instead=instead(name, config) if why else None,
        )


def _side(size: object) -> int | None:
    """The side of a square picture; open_clip's default where its definition is silent."""
    if isinstance(size, (list, tuple)):
        size = size[0]
    return int(size) if isinstance(size, int) else 224


def _counted() -> dict[str, tuple[float | None, float | None]]:
    source = resources.files("edgeladder.host.model").joinpath("parameters.json")
    values = json.loads(source.read_text(encoding="utf-8"))
    return {name: (pair[0], pair[1]) for name, pair in values.items()}
