"""The device's decoding against open_clip's own evaluation transform: the same bits."""

from __future__ import annotations

import io

import numpy as np
import pytest
from open_clip.transform import image_transform
from PIL import Image

from edgeladder.core.manifest import PreprocessRecord
from edgeladder.runtime.pictures.decode import decode

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SHAPES = [(1, 1), (64, 64), (65, 64), (37, 801), (300, 200), (200, 301), (1000, 31)]


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("colour", ["RGB", "L", "RGBA", "LA", "CMYK"])
def test_same_bits(mode: str, interpolation: str, colour: str) -> None:
    """Every shape and mode in which open_clip is defined."""
    theirs = image_transform(
        64,
        is_train=False,
        mean=MEAN,
        std=STD,
        resize_mode=mode,
        interpolation=interpolation,
        fill_color=7,
    )
    ours = PreprocessRecord(
        size=64,
        resize_mode=mode,
        interpolation=interpolation,
        mean=list(MEAN),
        std=list(STD),
        fill=7,
    )
    random = np.random.default_rng(0)
    bands = len(Image.new(colour, (1, 1)).getbands())
    for width, height in SHAPES:
        pixels = random.integers(0, 256, (height, width, bands), dtype=np.uint8)
        image = Image.fromarray(pixels if bands > 1 else pixels[..., 0], colour)
        formats = {"CMYK": ["JPEG", "TIFF"], "RGB": ["JPEG", "PNG"], "L": ["JPEG", "PNG"]}
        for format_name in formats.get(colour, ["PNG"]):
            stream = io.BytesIO()
            image.save(stream, format_name)
            expected = theirs(Image.open(io.BytesIO(stream.getvalue()))).numpy()
            found = decode(stream.getvalue(), ours)
            assert np.array_equal(expected, found), (width, height, format_name)
