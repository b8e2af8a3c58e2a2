"""Pictures in the report: the most wrong and the most improved, small and embedded.

A page holds sixteen thumbnails of a few kilobytes; a picture whose decoding would take much memory
is left out, and so is all of it where the pictures are not on this machine (a fleet's controller).
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from edgeladder.core.errors import EdgeLadderError
from edgeladder.report.record import RunRecord
from edgeladder.runtime.pictures.dataset import Picture, open_data, split
from edgeladder.runtime.pictures.sources import UnreadableError

_SIDE = 128  # pixels; shown at half of that on a dense screen
_MOST_PIXELS = 4_000_000  # decoded: 12 MB
_QUALITY = 72
_KINDS = (
    ("wrong", "Most wrong", "named otherwise than labelled, the most certain first"),
    ("improved", "Most improved", "wrong from names alone, right after training"),
)


def notable_pictures(record: RunRecord) -> str:
    """The two galleries, or why there are none."""
    told = record.evaluation.get("pictures") or {}
    if not any(told.get(kind) for kind, _, _ in _KINDS):
        return '<p class="none">no picture stands out, or none was recorded</p>'
    pictures = _judged(record)
    if pictures is None:
        return '<p class="none">the pictures of this run are not on this machine any more</p>'
    parts = []
    for kind, title, words in _KINDS:
        figures = [_figure(item, pictures) for item in told.get(kind) or []]
        if figures:
            gallery = "".join(figures)
            parts.append(
                f'<h3>{title}</h3><p>{escape(words)}</p><div class="gallery">{gallery}</div>'
            )
    return "".join(parts)


def _judged(record: RunRecord) -> list[Picture] | None:
    """The pictures that the evaluation went over, in its order; None where they are not here."""
    request = record.config.get("request") or {}
    data = request.get("data")
    if not data or not Path(str(data)).exists():
        return None
    try:
        train, test = split(open_data(str(data)), request.get("shots"), request.get("seed") or 0)
    except (EdgeLadderError, OSError):
        return None
    side = train if record.evaluation.get("split") == "train" else test
    skipped = record.result.get("skipped_inputs")
    lost = {item.get("path") for item in skipped} if isinstance(skipped, list) else set()
    pictures = [picture for picture in side if picture.path not in lost]
    return pictures if len(pictures) == record.evaluation.get("count") else None


def _figure(item: dict[str, Any], pictures: list[Picture]) -> str:
    picture = pictures[int(item["position"])]
    label, named = str(item["label"]), str(item["named"])
    source = _thumbnail(picture) if picture.label == label else None
    image = (
        f'<img src="data:image/jpeg;base64,{source}" alt="{escape(picture.path)}" '
        f'title="{escape(picture.path)}">'
        if source
        else '<div class="lost">not shown</div>'
    )
    share = f"{100 * float(item['probability']):.0f}&nbsp;%"
    if named == label:
        words = f"<b>{escape(label)}</b> {share}<br>before: {escape(str(item['zero_shot']))}"
    else:
        words = f"<b>{escape(named)}</b> {share}<br>is: {escape(label)}"
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>"


def _thumbnail(picture: Picture) -> str | None:
    """A small JPEG in base64; None where it cannot be read in little memory."""
    try:
        with Image.open(io.BytesIO(picture.read())) as opened:
            opened.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # a JPEG is reduced while it is decoded
            if opened.width * opened.height > _MOST_PIXELS:
                return None
            small = ImageOps.exif_transpose(opened).convert("RGB")
    except (UnreadableError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    small.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=_QUALITY)
    return base64.b64encode(stream.getvalue()).decode("ascii")
