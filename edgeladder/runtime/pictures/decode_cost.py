"""What decoding a picture takes in memory, told from its header before a pixel is read.

A header says width, height, format and mode, and those decide: Pillow stores four bytes a pixel of
any colour, libjpeg keeps every coefficient of a picture that comes in several scans (whatever the
scale it is decoded at), and some libraries hold the picture twice or more on the way. The factors
are the highest that `tests/runtime/data/test_decode_cost.py` lets stand against measured peaks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

WIDEST_RESIZED_PIXELS = 4096 * 1024  # beyond it only the part that survives the crop is resized
_COEFFICIENT = 2  # bytes
_SLACK = 2_500_000  # tables, a row of tiles, the codec's own code and heap
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2}  # bytes a pixel in Pillow; 4 in any other mode
# what a codec holds beside Pillow's pixels, bytes a pixel and channel of 8 bits
_CODEC = {"WEBP": 5.1, "AVIF": 4.5, "JPEG2000": 6.2}
_STRIP_TAG, _TILE_TAGS = 278, (322, 323)  # TIFF: RowsPerStrip; TileWidth, TileLength
# markers that stand alone, without a length behind them
_BARE = frozenset([0x01, *range(0xD0, 0xD9)])
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def decode_bytes(
    image: Image.Image, content: bytes, size: tuple[int, int], *, side: int, view: bool
) -> int:
    """Bytes in use at the peak between an opened header and the finished square.

    Args:
        image: opened, neither loaded nor reduced.
        content: the file's bytes, themselves counted.
        size: width and height that it will be decoded at: smaller for a reduced JPEG.
        side: of the tower's square.
        view: whether a part is cut out first, as for augmented views.
    """
    pixels = size[0] * size[1]
    stored = _STORED.get(image.mode, 4)
    alpha = image.mode in ("LA", "RGBA", "PA") or (
        image.mode == "P" and "transparency" in image.info
    )
    codec = _codec(image, content)
    # a palette is looked up in a copy, and colours are weighted by alpha in another one
    smooth = {"1": 1, "P": 4, "PA": 4, "I;16": 1, "I": 1, "F": 1}.get(image.mode, 0)
    drawn = smooth or stored
    later = stored * bool(smooth) + drawn * (1 + (view + alpha) * (drawn > 1) + view * (drawn == 1))
    resized = 4 * min(_resized(size, side), WIDEST_RESIZED_PIXELS) * (1 + alpha)
    columns = 4 * side * size[1]  # between the two passes of a resize
    peak = max(codec + stored * pixels, later * pixels + resized + columns)
    return int(len(content) + peak + _SLACK)


def _codec(image: Image.Image, content: bytes) -> float:
    """Bytes that the format's own library holds while it decodes."""
    pixels = image.size[0] * image.size[1]
    channels = len(image.getbands())
    if image.format in ("JPEG", "MPO"):
        return _coefficients(image, content)
    if image.format == "TIFF":
        return float(_strip(image, channels))
    factor = _CODEC.get(image.format or "", 0.0)
    return factor * pixels * max(channels, 3 if image.format != "JPEG2000" else 1)


def _coefficients(image: Any, content: bytes) -> float:
    """Of a JPEG that comes in several scans: all of them, at the resolution of the file."""
    if not several_scans(content):
        return 0.0
    layers = [(across, down) for _, across, down, _ in image.layer] or [(1, 1)] * 4
    widest, highest = (max(layer[axis] for layer in layers) for axis in (0, 1))
    share = sum(across * down for across, down in layers) / (widest * highest)
    return float(_COEFFICIENT * share * (image.size[0] + 16) * (image.size[1] + 16))


def _strip(image: Any, channels: int) -> int:
    """A TIFF's strip or tile, raw: a file may put the whole picture into one."""
    tags = image.tag_v2
    depth = {"I;16": 2, "I": 4, "F": 4}.get(image.mode, 1)
    if _TILE_TAGS[0] in tags:  # a tile may be far larger than the picture that is cut from it
        width, rows = (int(tags.get(tag) or 0) for tag in _TILE_TAGS)
        return width * rows * channels * depth
    rows = min(int(tags.get(_STRIP_TAG) or image.size[1]), image.size[1])
    return int(rows * image.size[0] * channels * depth)


def several_scans(content: bytes) -> bool:
    """Whether a JPEG's coefficients come in more than one scan: progressive or not interleaved."""
    components = 0
    for marker, place in _segments(content):
        if marker in _FRAMES:
            if marker not in (0xC0, 0xC1, 0xC9):  # baseline, extended; the same, arithmetic
                return True
            components = content[place + 9] if place + 9 < len(content) else 0
        elif marker == 0xDA:
            return place + 4 < len(content) and content[place + 4] < components
    return True  # lost: count the worse


def jpeg_frame(content: bytes) -> tuple[int, int] | None:
    """A JPEG's width and height by its frame header; None where there is none, or no JPEG."""
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    for marker, place in _segments(content):
        if marker in _FRAMES:
            if place + 9 > len(content):
                return None
            height, width = (
                int.from_bytes(content[place + at : place + at + 2], "big") for at in (5, 7)
            )
            return (width, height) if width and height else None
    return None


def _segments(content: bytes) -> Iterator[tuple[int, int]]:
    """A JPEG's markers with a length, each with its place, until what is not one."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF or marker in _BARE:
            place += 1 if marker == 0xFF else 2
            continue
        yield marker, place
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")


def _resized(size: tuple[int, int], side: int) -> int:
    """Pixels after the short side was brought to the square's."""
    return side * max(side, side * max(size) // max(1, min(size)))
