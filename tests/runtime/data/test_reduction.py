"""Large JPEGs are decoded at a half, a quarter or an eighth of their sides, and nothing else is."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import encode, noise
from PIL import Image
from tiny_tower import TinyBundle

from edgeladder.core.manifest import PreprocessRecord
from edgeladder.runtime.pictures.dataset import open_data, split
from edgeladder.runtime.pictures.decode import decode_square, square_of
from edgeladder.runtime.pictures.decode_cost import jpeg_frame
from edgeladder.runtime.pictures.reduction import large_scale
from edgeladder.runtime.towers.fill_cache import Wanted, looked_up
from tests.runtime.data.test_precompute import fill
from tools.bench.picture_stages import photo

SIDE = 224


def record(side: int = SIDE) -> PreprocessRecord:
    return PreprocessRecord(
        size=side, resize_mode="shortest", interpolation="bicubic", mean=[0.5] * 3, std=[0.5] * 3
    )


@pytest.fixture(scope="module")
def camera() -> bytes:
    """Five megapixels."""
    return encode(photo(2560, 1920, seed=0), "JPEG", quality=92)


@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {"quality": 50})],
)
def test_the_frame_header_says_what_pillow_says(mode: str, options: dict) -> None:
    content = encode(noise(83, 41).convert(mode), "JPEG", **options)
    assert jpeg_frame(content) == (83, 41)


def test_a_thumbnail_inside_is_not_taken_for_the_picture() -> None:
    """Cameras put a whole JPEG into the EXIF record before the frame."""
    exif = Image.Exif()
    exif[0x010E] = "x" * 20
    inside = encode(noise(16, 16), "JPEG")
    content = encode(noise(83, 41), "JPEG", exif=exif.tobytes() + inside)
    assert content.count(b"\xff\xd8\xff") == 2 and jpeg_frame(content) == (83, 41)


@pytest.mark.parametrize("cut", range(0, 30, 3))
def test_what_is_no_jpeg_or_cut_short_has_no_frame(cut: int) -> None:
    assert jpeg_frame(encode(noise(83, 41), "JPEG")[:cut]) is None
    assert jpeg_frame(encode(noise(83, 41), "PNG")) is None


def test_what_is_reduced(camera: bytes) -> None:
    """Above two megapixels, and never below three times the square."""
    assert large_scale(camera, SIDE) == 2 and large_scale(camera, 32) == 8
    assert large_scale(camera, 400) == 1  # 1,920 rows are less than 2 * 3 * 400
    assert large_scale(encode(noise(40, 40), "JPEG"), 1) == 1


@pytest.mark.parametrize("side", [224, 64])
def test_the_square_is_within_a_grey_level_of_the_whole_decode(camera: bytes, side: int) -> None:
    """Referee: Pillow's full decode, resized by the same rule."""
    with Image.open(io.BytesIO(camera)) as image:
        whole = square_of(image, record(side)).astype(float)
    reduced = decode_square(camera, record(side)).astype(float)
    assert 0 < np.sqrt(np.mean((reduced - whole) ** 2)) < 1


def test_a_png_and_a_small_jpeg_are_decoded_whole() -> None:
    for content in (
        encode(noise(1700, 1300, seed=3), "PNG"),
        encode(noise(1600, 1200, seed=3), "JPEG"),
    ):
        with Image.open(io.BytesIO(content)) as image:
            assert (decode_square(content, record()) == square_of(image, record())).all()


def test_samples_of_large_pictures_are_found_again(
    tiny: TinyBundle, make_folder: Callable[..., Path], tmp_path: Path, camera: bytes
) -> None:
    """By precompute, by planning without a tower, and views as well."""
    files = {f"train/{name}/{i}.png": None for name in ("dress", "hat") for i in range(2)}
    folder = make_folder({**files, "train/hat/photo.jpg": camera, "test/hat/photo.jpg": camera})
    first = fill(tiny, folder, tmp_path / "cache", views=1)
    again = fill(tiny, folder, tmp_path / "cache", views=1)
    assert (first.new, again.new, again.reused) == (10, 0, 11)
    data = open_data(folder)
    wanted = Wanted(*split(data, None, 0), 1)
    known = looked_up(tiny, data, tmp_path / "cache", wanted, "", most_bytes=1 << 30)
    assert known is not None
    assert (known.selection.train_keys == first.selection.train_keys).all()
