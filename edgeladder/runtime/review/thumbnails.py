"""Small pictures for pages: decoded within the same limits as any picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edgeladder.runtime.pictures.decode import decode_square
from edgeladder.runtime.pictures.decode_watch import DecodeWatch
from edgeladder.runtime.pictures.sources import UnreadableError

if TYPE_CHECKING:
    from edgeladder.core.manifest import PreprocessRecord
    from edgeladder.runtime.pictures.dataset import Picture

SIDE = 96  # pixels of a thumbnail
_QUALITY = 70
MOST = 300  # thumbnails of a page: a megabyte or so

Square = Callable[["Picture"], "np.ndarray | None"]


def squares(
    preprocess: PreprocessRecord, max_pixels: int, max_bytes: int | None, watch: DecodeWatch
) -> Square:
    """A reader of a picture's evaluation view (S, S, 3) uint8; None where it cannot be read."""

    def square(picture: Picture) -> np.ndarray | None:
        try:
            watch.begins(picture.path)
            content = picture.read(max_bytes)
            return decode_square(content, preprocess, max_pixels=max_pixels, max_bytes=max_bytes)
        except UnreadableError:
            return None
        finally:
            watch.over()

    return square


def light(square: np.ndarray) -> np.ndarray:
    """(8, 9) mean grey values of a square, for `duplicates.difference_hash`."""
    return np.asarray(Image.fromarray(square).convert("L").resize((9, 8), Image.Resampling.BOX))


def thumbnails(
    paths: Iterable[str],
    pictures: Mapping[str, Picture],
    square: Square,
    on_step: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """JPEGs in base64 by path, of the first MOST paths that can be read."""
    found: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        if len(found) == MOST:
            break
        pixels = square(pictures[path])
        if pixels is None:
            continue
        out = io.BytesIO()
        small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX)
        small.save(out, "JPEG", quality=_QUALITY)
        found[path] = base64.b64encode(out.getvalue()).decode("ascii")
        on_step()
    return found
