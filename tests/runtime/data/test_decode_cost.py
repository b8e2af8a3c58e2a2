"""What decoding takes is told from the header: never below what a process of its own reaches."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from edgeladder.core.manifest import PreprocessRecord
from edgeladder.runtime.pictures.decode import decode_square
from edgeladder.runtime.pictures.decode_cost import decode_bytes, several_scans
from edgeladder.runtime.pictures.reduction import large_scale
from edgeladder.runtime.pictures.sources import UnreadableError

SIDE = 224
WIDTH, HEIGHT = 1920, 1440
_CODE = Path(__file__).parents[3]
_MEASURE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import PIL.Jpeg2KImagePlugin, PIL.TiffImagePlugin, PIL.WebPImagePlugin
from PIL import Image
from tests.runtime.data.test_decode_cost import memory, record
from edgeladder.core.trim import trim_heap
from edgeladder.runtime.pictures.views import view_square

found = {}
for path in sorted(Path(sys.argv[2]).iterdir()):
    for view in (0, 1):
        content = path.read_bytes()
        trim_heap()  # so that nothing that is free already is used again unseen
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        view_square(content, record(), view)
        found[f"{path.name} {view}"] = memory("VmHWM") - before + len(content)
print(__import__("json").dumps(found))
"""


def memory(line: str) -> int:
    """Bytes of a line of this process's status."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(row.split()[1]) * 1024 for row in text.splitlines() if row.startswith(line))


def record() -> PreprocessRecord:
    return PreprocessRecord(
        size=SIDE,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        interpolation="bicubic",
        resize_mode="shortest",
    )


def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return Image.fromarray(noise).resize((WIDTH, HEIGHT))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@lru_cache
def formats() -> dict[str, bytes]:
    colour = picture()
    grey, few, inks = colour.convert("L"), colour.quantize(64), colour.convert("CMYK")
    wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    clear = colour.convert("RGBA")
    half = colour.resize((WIDTH // 2, HEIGHT // 2))
    found = {
        "jpeg": encoded(colour, "JPEG"),
        "jpeg grey progressive": encoded(grey, "JPEG", progressive=True),
        "jpeg 4:2:0 progressive": encoded(colour, "JPEG", subsampling=2, progressive=True),
        "jpeg 4:4:4 progressive": encoded(colour, "JPEG", subsampling=0, progressive=True),
        "jpeg CMYK": encoded(inks, "JPEG"),
        "jpeg CMYK progressive": encoded(inks, "JPEG", progressive=True),
        "png": encoded(colour, "PNG", compress_level=1),
        "png alpha": encoded(clear, "PNG", compress_level=1),
        "png grey alpha": encoded(colour.convert("LA"), "PNG", compress_level=1),
        "png palette": encoded(few, "PNG", compress_level=1),
        "png clear palette": encoded(few, "PNG", compress_level=1, transparency=3),
        "png 1 bit": encoded(colour.convert("1"), "PNG"),
        "png 16 bit": encoded(wide, "PNG", compress_level=1),
        "gif": encoded(few, "GIF"),
        "bmp": encoded(colour, "BMP"),
        "pgm 16 bit": b"P5 %d %d 65535\n" % wide.size + np.asarray(wide).byteswap().tobytes(),
        "tiff": encoded(colour, "TIFF"),
        "tiff one strip": encoded(colour, "TIFF", compression="tiff_lzw", strip_size=1 << 30),
        "tiff CMYK": encoded(inks, "TIFF"),
        "tiff 16 bit": encoded(wide, "TIFF"),
        "tiff float": encoded(colour.convert("F"), "TIFF"),
        "webp": encoded(half, "WEBP", method=0),
        "webp lossless": encoded(half.convert("RGBA"), "WEBP", lossless=True, method=0, quality=0),
    }
    if features.check("jpg_2000"):
        found["jpeg 2000"] = encoded(half, "JPEG2000")
    return found


def needed(content: bytes, *, view: bool) -> int:
    with Image.open(io.BytesIO(content)) as image:
        scale = large_scale(content, SIDE)
        size = (-(-image.width // scale), -(-image.height // scale))
        return decode_bytes(image, content, size, side=SIDE, view=view)


def test_no_format_takes_more_than_its_header_says(tmp_path: Path) -> None:
    files = formats()
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("/", " ")).write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(_CODE), str(folder)],
        capture_output=True,
        text=True,
        check=True,
        cwd=_CODE,
    )
    for key, measured in json.loads(done.stdout).items():
        name, view = key.rsplit(" ", 1)
        said = needed(files[name], view=view == "1")
        assert measured <= said, f"{key}: {measured / 1e6:.1f} MB, said {said / 1e6:.1f} MB"
        # an estimate that is far too high would refuse pictures that fit
        assert said <= 2.4 * measured + 8_000_000, f"{key}: {measured / 1e6:.1f} MB"


def test_a_progressive_jpeg_counts_all_coefficients_whatever_its_scale() -> None:
    grey = Image.new("RGB", (9000, 8900))
    content = encoded(grey, "JPEG", progressive=True)
    assert several_scans(content)
    assert not several_scans(encoded(picture(), "JPEG"))
    with pytest.raises(UnreadableError, match=r"9000 x 8900 pixels of this JPEG take .* to decode"):
        decode_square(content, record(), max_bytes=60_000_000)


def tiled(side: int) -> bytes:
    """A grey TIFF of 64 x 64 pixels, cut from a single black tile of side x side."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    row = packer.compress(bytes(side)) + packer.flush(zlib.Z_FULL_FLUSH)  # each like the first
    check = struct.pack(">I", 1 | (side * side % 65521) << 16)  # Adler-32 of zeros
    tile = b"".join([b"\x78\x01", row * side, packer.flush(), check])
    tags = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (284, 1), (322, side)]
    tags += [(323, side), (324, 8), (325, len(tile))]
    rows = [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags]
    start = struct.pack("<4sI", b"II*\x00", 8 + len(tile))
    return b"".join([start, tile, struct.pack("<H", len(rows)), *rows, bytes(4)])


def test_a_tile_counts_whole_however_little_of_it_is_the_picture() -> None:
    """64 x 64 pixels that take 36 MB: they were planned as 4 kB and ended workers."""
    content = tiled(6000)
    assert len(content) < 500_000
    assert decode_square(content, record()).shape == (SIDE, SIDE, 3)
    with pytest.raises(UnreadableError, match="64 x 64 pixels of this TIFF take 39 MB to decode"):
        decode_square(content, record(), max_bytes=30_000_000)


def test_a_jpeg_is_reduced_until_its_memory_fits() -> None:
    content = encoded(picture().resize((2400, 1800)), "JPEG")
    full = decode_square(content, record()).astype(int)
    reduced = decode_square(content, record(), max_bytes=needed(content, view=False) * 3 // 4)
    assert np.abs(full - reduced).mean() < 2
    with pytest.raises(UnreadableError, match="to decode, more than the 1 MB"):
        decode_square(content, record(), max_bytes=1_000_000)


@pytest.mark.parametrize("kind", ["tiff CMYK", "png 16 bit", "webp"])
def test_what_cannot_be_reduced_is_refused_before_it_is_decoded(kind: str) -> None:
    content = formats()[kind]
    with pytest.raises(UnreadableError, match="to decode, more than the"):
        decode_square(content, record(), max_bytes=needed(content, view=False) - 1)
    assert decode_square(content, record(), max_bytes=needed(content, view=False)).shape == (
        SIDE,
        SIDE,
        3,
    )


def test_wide_values_are_narrowed_in_strips_as_in_one_piece() -> None:
    values = np.random.default_rng(1).integers(0, 65536, (700, 300)).astype(np.uint16)
    content = encoded(Image.fromarray(values), "PNG")
    narrow = encoded(Image.fromarray((values >> 8).astype(np.uint8)), "PNG")
    assert np.array_equal(decode_square(content, record()), decode_square(narrow, record()))
