"""Augmented views of a training picture, cached like the picture itself.

View 0 is the evaluation view. View k > 0 is a random crop, resized and perhaps mirrored, with all
its chances drawn from (content, k): the same view on every machine, and in every run.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edgeladder.runtime.pictures.decode import (
    EXACT_PIXELS,
    RESAMPLING,
    decode_square,
    open_picture,
    orientation,
    upright,
)

if TYPE_CHECKING:
    from edgeladder.core.manifest import PreprocessRecord

VERSION = "crop-flip-1"  # part of a view's cache key: change it with anything below
_SMALLEST_AREA = 0.5  # of the picture; Tip-Adapter's RandomResizedCrop(scale=(0.5, 1))
_RATIO = (3 / 4, 4 / 3)  # torchvision's default
_TRIES = 10


def view_square(
    content: bytes,
    preprocess: PreprocessRecord,
    view: int,
    *,
    max_pixels: int = EXACT_PIXELS,
    max_bytes: int | None = None,
) -> np.ndarray:
    """View `view` of a picture: (S, S, 3) uint8; limits as `decode_square` has them.

    Raises:
        UnreadableError: not a picture, truncated, or too large to decode.
    """
    if view == 0:
        return decode_square(content, preprocess, max_pixels=max_pixels, max_bytes=max_bytes)
    chances = Chances(content, view)
    with open_picture(
        content, preprocess.size, max_pixels=max_pixels, max_bytes=max_bytes, view=True
    ) as image:
        width, height = image.size
        box = _box(width, height, chances)
        square = (preprocess.size, preprocess.size)
        cropped = image.crop(box).resize(square, RESAMPLING[preprocess.interpolation])
        if next(chances) < 0.5:
            cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return upright(cropped, orientation(image))


class Chances:
    """Numbers in [0, 1) from a hash, so that no library's generator can change them."""

    def __init__(self, content: bytes, view: int):
        self._seed = hashlib.sha256(content).digest() + view.to_bytes(4, "little")
        self._count = 0

    def __next__(self) -> float:
        self._count += 1
        digest = hashlib.sha256(self._seed + self._count.to_bytes(4, "little")).digest()
        return int.from_bytes(digest[:8], "little") / 2**64


def _box(width: int, height: int, chances: Chances) -> tuple[int, int, int, int]:
    """A crop as torchvision's RandomResizedCrop.get_params draws it."""
    low, high = (math.log(value) for value in _RATIO)
    for _ in range(_TRIES):
        area = width * height * (_SMALLEST_AREA + (1 - _SMALLEST_AREA) * next(chances))
        ratio = math.exp(low + (high - low) * next(chances))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        left, top = next(chances), next(chances)
        if 0 < across <= width and 0 < down <= height:
            x, y = int(left * (width - across + 1)), int(top * (height - down + 1))
            return x, y, x + across, y + down
    # too long and thin for any of those: the middle, at the nearest ratio allowed
    across = min(width, max(1, round(height * _RATIO[1])))
    down = min(height, max(1, round(width / _RATIO[0])))
    x, y = (width - across) // 2, (height - down) // 2
    return x, y, x + across, y + down
