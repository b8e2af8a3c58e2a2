"""Every sort of picture a folder may hold becomes a square, or says why it cannot."""

from __future__ import annotations

import resource
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import encode, noise
from PIL import Image

from edgeladder.runtime.pictures.decode import decode, decode_square, normalize
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.runtime.pictures.views import VERSION, Chances, _box, view_square


def record(size: int = 32, mode: str = "shortest") -> SimpleNamespace:
    """A preprocessing record."""
    return SimpleNamespace(
        size=size,
        resize_mode=mode,
        interpolation="bicubic",
        mean=[0.48, 0.46, 0.41],
        std=[0.27, 0.26, 0.28],
        fill=0,
    )


def grey(square: np.ndarray) -> float:
    """Mean level."""
    return float(square.astype(np.float64).mean())


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (32, 32), (33, 47), (500, 40), (7, 301)])
def test_any_shape_gives_the_square(mode: str, width: int, height: int) -> None:
    """(3, S, S) float32, finite, whatever the proportions."""
    pixels = decode(encode(noise(width, height)), record(mode=mode))
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.float32
    assert np.isfinite(pixels).all()


def test_normalization_is_exact() -> None:
    """(x / 255 - mean) / std, per channel."""
    square = np.zeros((1, 2, 2, 3), np.uint8)
    square[..., 0] = 255
    found = normalize(square, record(2))[0, :, 0, 0]
    expected = (np.array([1, 0, 0]) - [0.48, 0.46, 0.41]) / [0.27, 0.26, 0.28]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "CMYK"])
def test_modes_agree_on_a_grey(mode: str) -> None:
    """A uniform opaque grey is the same grey in every mode."""
    image = Image.new("L", (50, 40), 120).convert("RGB")
    converted = image.convert("L").convert("LA") if mode == "LA" else image.convert(mode)
    square = decode_square(encode(converted, "TIFF" if mode == "CMYK" else "PNG"), record())
    assert abs(grey(square) - 120) < 1.5


def test_alpha_is_black_where_transparent() -> None:
    """As open_clip's transform has it: resized with the alpha, which is then dropped."""
    image = Image.new("RGBA", (40, 40), (200, 200, 200, 255))
    image.paste((255, 0, 0, 0), (0, 0, 20, 40))
    square = decode_square(encode(image), record())
    assert grey(square[:, :12]) < 3 and abs(grey(square[:, 20:]) - 200) < 3


def test_palette_is_resized_smoothly() -> None:
    """A palette picture comes close to its full-colour original."""
    original = noise(90, 70)
    palette = original.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    expected = decode_square(encode(original), record()).astype(int)
    for content in (encode(palette), encode(palette, "GIF")):
        assert np.abs(decode_square(content, record()).astype(int) - expected).mean() < 6
    bits = Image.new("1", (40, 40), 1)
    assert grey(decode_square(encode(bits), record())) == 255


def test_sixteen_bits_keep_their_greys() -> None:
    """Not clipped at 255, as a plain conversion would."""
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    for image in (
        Image.fromarray(ramp.astype(np.uint16)),
        Image.fromarray(ramp.astype(np.int32)),
    ):
        square = decode_square(encode(image, "TIFF"), record())
        assert abs(grey(square) - 127.5) < 3 and square.max() > 240 and square.min() < 15
    square = decode_square(encode(Image.fromarray(ramp.astype(np.uint16))), record())
    assert abs(grey(square) - 127.5) < 3
    floats = Image.fromarray((ramp / 65535).astype(np.float32))
    assert abs(grey(decode_square(encode(floats, "TIFF"), record())) - 127.5) < 3


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_rotation(turn: int) -> None:
    """A camera's rotation record is obeyed: every orientation shows the same upright picture."""
    upright = Image.new("RGB", (64, 48), (0, 0, 0))
    upright.paste((255, 255, 255), (0, 0, 16, 12))  # white in the upper left
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[turn]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = turn
    content = encode(stored, "JPEG", exif=exif, quality=95)
    square = decode_square(content, record(mode="squash"))
    assert grey(square[:7, :7]) > 200 and grey(square[16:, :]) < 10 and grey(square[:, 16:]) < 10
    view = view_square(content, record(), 1)
    assert view.shape == (32, 32, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, I am a text file",
        b"%PDF-1.7 and so on",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        b"\xff\xd8\xff" + b"\0" * 40,
        b"RIFF\x10\0\0\0WEBPnothing",
    ],
)
def test_what_is_no_picture(content: bytes) -> None:
    """Said to be so, whatever the first bytes pretend."""
    with pytest.raises(UnreadableError, match="not a picture|damaged"):
        decode(content, record())


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_pictures(format_name: str) -> None:
    """Cut at any tenth: an error, never a half grey picture and never another exception."""
    content = encode(noise(200, 150, seed=3), format_name)
    assert decode(content, record()).shape == (3, 32, 32)
    for tenth in range(1, 10):
        with pytest.raises(UnreadableError):
            decode(content[: len(content) * tenth // 10], record())


def test_thirty_thousand_pixels_wide() -> None:
    """A panorama costs what it decodes to, not the strip that a resize of the whole would be."""
    code = """
import io, resource, sys
from types import SimpleNamespace
from PIL import Image
from edgeladder.runtime.pictures.decode import decode_square
record = SimpleNamespace(size=224, resize_mode=sys.argv[1], interpolation="bicubic", fill=0)
stream = io.BytesIO()
Image.new("RGB", (30000, 12), (90, 120, 150)).save(stream, "PNG")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
square = decode_square(stream.getvalue(), record)
assert square.shape == (224, 224, 3)
if sys.argv[1] == "shortest":
    assert (abs(square.astype(int) - [90, 120, 150]) <= 1).all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for mode in ("shortest", "longest"):
        done = subprocess.run(
            [sys.executable, "-c", code, mode], capture_output=True, text=True, check=True
        )
        assert int(done.stdout) < 12_000  # kB; resizing the whole strip would take 500 MB


def test_a_strip_is_cropped_as_if_resized_whole() -> None:
    """The short cut for extreme proportions, against the long way: within one grey level."""
    image = noise(12000, 100, seed=4)
    short_cut = decode_square(encode(image), record(224)).astype(int)
    wide = image.resize((int(224 * 12000 / 100), 224), Image.Resampling.BICUBIC)
    left = round((wide.width - 224) / 2)
    expected = np.asarray(wide.crop((left, 0, left + 224, 224))).astype(int)
    assert np.abs(short_cut - expected).max() <= 1


def test_a_large_jpeg_is_decoded_smaller() -> None:
    """Beyond the limit: at half or less, close to the full decode; other formats are refused."""
    image = noise(1600, 1200, seed=5)
    jpeg = encode(image, "JPEG", quality=95)
    full = decode_square(jpeg, record()).astype(int)
    drafted = decode_square(jpeg, record(), max_pixels=500_000).astype(int)
    assert np.abs(full - drafted).mean() < 3
    assert (full != drafted).any()  # that is why it is an option
    with pytest.raises(UnreadableError, match="1600 x 1200 pixels are more than"):
        decode_square(encode(image), record(), max_pixels=500_000)


def test_a_decompression_bomb_is_refused_unopened() -> None:
    """A few kilobytes that claim 2.5 thousand million pixels."""
    rows = zlib.compress(b"\0" * 100_000, 9)
    header = (50_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + crc.to_bytes(4, "big")

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UnreadableError, match="50000 x 50000 pixels"):
        decode(bomb, record())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_views_are_fixed_by_content_and_index() -> None:
    """The same every time, different from each other, and like the picture."""
    content = encode(noise(100, 80, seed=6))
    assert (view_square(content, record(), 0) == decode_square(content, record())).all()
    views = [view_square(content, record(), k) for k in range(1, 9)]
    again = [view_square(content, record(), k) for k in range(1, 9)]
    assert all((a == b).all() for a, b in zip(views, again, strict=True))
    assert len({view.tobytes() for view in views}) == 8
    assert all(abs(grey(view) - grey(views[0])) < 40 for view in views)
    assert view_square(encode(noise(1, 1)), record(), 3).shape == (32, 32, 3)
    assert view_square(encode(noise(900, 3)), record(), 3).shape == (32, 32, 3)


def test_views_do_not_change_between_versions() -> None:
    """What is cached under this version's name stays what it is: the crops, pinned."""
    chances = Chances(b"content", 1)
    assert VERSION == "crop-flip-1"
    assert [_box(640, 480, chances) for _ in range(2)] == [(59, 6, 535, 463), (101, 4, 509, 464)]
    assert _box(640, 480, Chances(b"content", 2)) == (88, 51, 599, 458)
