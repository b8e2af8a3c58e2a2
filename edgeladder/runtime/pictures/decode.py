"""Picture bytes -> the square the tower sees, exactly as open_clip's evaluation transform does.

But for large JPEGs, which libjpeg reduces on the way (`reduction`).
Two steps, so that a picture can wait on disk as 8-bit pixels: `decode_square` (open, rotate,
resize, crop) and `normalize` (scale, mean, deviation). What open_clip leaves undefined or to
chance (palettes, 16-bit, EXIF rotation, pictures that would fill the memory) is settled here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edgeladder.runtime.pictures.decode_cost import WIDEST_RESIZED_PIXELS, decode_bytes
from edgeladder.runtime.pictures.reduction import FEWEST_SIDES, SCALES, large_scale
from edgeladder.runtime.pictures.sources import UnreadableError

if TYPE_CHECKING:
    from edgeladder.core.manifest import PreprocessRecord

EXACT_PIXELS = 4096 * 4096  # 67 MB decoded; beyond it a JPEG is decoded at 1/2, 1/4 or 1/8
RESAMPLING = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
}
# what to import for a format Pillow does not load at once; loading all of them costs megabytes
_PLUGINS = {
    "WEBP": "PIL.WebPImagePlugin",
    "TIFF": "PIL.TiffImagePlugin",
    "AVIF": "PIL.AvifImagePlugin",
    "JPEG2000": "PIL.Jpeg2KImagePlugin",
}
_STRIP_PIXELS = 1 << 16  # brought to 8 bits at a time
_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class _Limits:
    """Of one picture's decoding."""

    pixels: int
    bytes: int | None
    view: bool  # whether a part will be cut out


def decode(content: bytes, preprocess: PreprocessRecord) -> np.ndarray:
    """Normalised pixels (3, S, S) float32 of a picture file's bytes.

    Raises:
        UnreadableError: not a picture, truncated, or too large to decode.
    """
    pixels: np.ndarray = normalize(decode_square(content, preprocess)[None], preprocess)[0]
    return pixels


def decode_square(
    content: bytes,
    preprocess: PreprocessRecord,
    *,
    max_pixels: int = EXACT_PIXELS,
    max_bytes: int | None = None,
) -> np.ndarray:
    """The evaluation view: (S, S, 3) uint8, before normalisation.

    Args:
        max_pixels: decoded in full up to here; a larger JPEG is decoded at a lower resolution
            (pixels then differ slightly), a larger picture of another format is refused.
        max_bytes: of memory that decoding may take, the file's own bytes included; a JPEG is
            decoded at a lower resolution where that helps, any other picture is refused.

    Raises:
        UnreadableError: not a picture, truncated, or too large to decode.
    """
    with open_picture(
        content, preprocess.size, max_pixels=max_pixels, max_bytes=max_bytes
    ) as image:
        return upright(_square(image, preprocess), orientation(image))


def square_of(image: Image.Image, preprocess: PreprocessRecord) -> np.ndarray:
    """The evaluation view (S, S, 3) uint8 of an upright picture that is in memory."""
    return upright(_square(image, preprocess), None)


def normalize(squares: np.ndarray, preprocess: PreprocessRecord) -> np.ndarray:
    """(n, S, S, 3) uint8 -> (n, 3, S, S) float32.

    Operations and their order are torchvision's ToTensor and Normalize, so the bits are too.
    """
    pixels = np.ascontiguousarray(squares.transpose(0, 3, 1, 2)).astype(np.float32)
    pixels /= np.float32(255)
    pixels -= np.asarray(preprocess.mean, np.float32)[:, None, None]
    pixels /= np.asarray(preprocess.std, np.float32)[:, None, None]
    return pixels


def open_picture(
    content: bytes,
    size: int,
    *,
    max_pixels: int = EXACT_PIXELS,
    max_bytes: int | None = None,
    view: bool = False,
) -> Image.Image:
    """A decoded picture in a mode that resizes smoothly; not yet turned to its EXIF orientation.

    Args:
        size: side of the tower's square.
        max_pixels, max_bytes: as `decode_square` has them.
        view: whether a part will be cut out of it.

    Raises:
        UnreadableError: not a picture, truncated, or too large to decode.
    """
    with _header(content) as image:
        scale = _scale(image, content, size, _Limits(max_pixels, max_bytes, view))
        if scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        image.load()
        return _smooth(image)


def decoding_scale(
    content: bytes, size: int, *, max_pixels: int, max_bytes: int | None, view: bool
) -> int:
    """1, or by what `open_picture` divides a JPEG's sides: it is large, or memory is short.

    Raises:
        UnreadableError: not a picture, or too large to decode.
    """
    with _header(content) as image:
        return _scale(image, content, size, _Limits(max_pixels, max_bytes, view))


@contextlib.contextmanager
def _header(content: bytes) -> Iterator[Image.Image]:
    """A picture of which only the header is read; what goes wrong inside is an UnreadableError."""
    format_name = _format(content)
    if format_name is None:
        raise UnreadableError("not a picture of a known format")
    if format_name in _PLUGINS:
        importlib.import_module(_PLUGINS[format_name])
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # checked here, against a budget
    try:
        yield Image.open(io.BytesIO(content), formats=[format_name])
    except UnreadableError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise UnreadableError(f"damaged: {error or type(error).__name__}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def orientation(image: Image.Image) -> Image.Transpose | None:
    """What turns the picture upright, by its EXIF record."""
    try:
        return _TURNS.get(image.getexif().get(_ORIENTATION) or 0)
    except Exception:  # a damaged EXIF record is no reason to lose the picture
        return None


def upright(square: Image.Image, turn: Image.Transpose | None) -> np.ndarray:
    """The finished square (S, S, 3) uint8.

    Turned only now: a turned phone photo would need its whole size in memory twice.
    """
    colour = square.convert("RGB")
    return np.asarray(colour if turn is None else colour.transpose(turn))


def _format(content: bytes) -> str | None:
    """The format by its first bytes."""
    head = content[:16]
    for magic, name in (
        (b"\xff\xd8\xff", "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"GIF8", "GIF"),
        (b"BM", "BMP"),
        (b"II*\x00", "TIFF"),
        (b"MM\x00*", "TIFF"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
        (b"\xff\x4f\xff\x51", "JPEG2000"),
    ):
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
        return "AVIF"
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PPM"
    return None


def _scale(image: Image.Image, content: bytes, size: int, limits: _Limits) -> int:
    """By what a JPEG's sides are divided: because it is large, and until it fits the limits."""
    full, scale = image.size, large_scale(content, size)
    needed = partial(decode_bytes, image, content, side=size, view=limits.view)
    reducible = image.format in ("JPEG", "MPO")
    while not _fits(full, scale, needed, limits):
        scale *= 2
        if not reducible or scale > SCALES[-1] or min(full) < FEWEST_SIDES * size * scale:
            break
    else:
        return scale
    if full[0] * full[1] > limits.pixels * 1.01 * (scale // 2) ** 2:
        raise UnreadableError(
            f"{full[0]} x {full[1]} pixels are more than the {limits.pixels / 1e6:.0f} million "
            "that fit"
        )
    raise UnreadableError(
        f"{full[0]} x {full[1]} pixels of this {image.format} take "
        f"{needed(_reduced(full, scale // 2)) / 1e6:.0f} MB to decode, more than the "
        f"{(limits.bytes or 0) / 1e6:.0f} MB that the budget leaves for a picture"
    )


def _fits(full: tuple[int, int], scale: int, needed: Callable[..., int], limits: _Limits) -> bool:
    size = _reduced(full, scale)
    most = limits.pixels * 1.01 if scale > 1 else limits.pixels  # reduced sides are rounded up
    within = size[0] * size[1] <= most
    return within and (limits.bytes is None or needed(size) <= limits.bytes)


def _reduced(full: tuple[int, int], scale: int) -> tuple[int, int]:
    return -(-full[0] // scale), -(-full[1] // scale)


def _smooth(image: Image.Image) -> Image.Image:
    """Modes that Pillow would resize by nearest neighbour, or clip at 255, made smooth."""
    if image.mode == "1":
        return _keep_exif(image, image.convert("L"))
    if image.mode in ("P", "PA"):
        alpha = image.mode == "PA" or "transparency" in image.info
        return _keep_exif(image, image.convert("RGBA" if alpha else "RGB"))
    if image.mode.startswith("I;16"):
        return _keep_exif(image, _grey(image, lambda rows: rows >> 8))
    if image.mode in ("I", "F"):
        highest: float = image.getextrema()[1]  # type: ignore[assignment]  # one band: two numbers
        top = max(0.0, float(np.float32(highest)))
        # 16-bit PNG in Pillow's mode I, or floats in 0..1
        scale = 255.0 if top <= 1.0 else 1.0 if top <= 255.0 else 255.0 / max(top, 65535.0)
        return _keep_exif(
            image, _grey(image, lambda rows: np.clip(rows.astype(np.float32) * scale, 0, 255))
        )
    return image


def _grey(image: Image.Image, scaled: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """A picture of wide values in 8 bits, some rows at a time: numpy's copies would be four."""
    grey = Image.new("L", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = np.asarray(image.crop((0, top, image.width, bottom)))
        grey.paste(Image.fromarray(scaled(strip).astype(np.uint8)), (0, top))
    return grey


def _keep_exif(image: Image.Image, converted: Image.Image) -> Image.Image:
    exif = image.info.get("exif")
    if exif:
        converted.info["exif"] = exif
    return converted


def _square(image: Image.Image, preprocess: PreprocessRecord) -> Image.Image:
    """Resize and crop as `open_clip.transform.image_transform(is_train=False)`."""
    size, mode = preprocess.size, preprocess.resize_mode
    resampling = RESAMPLING[preprocess.interpolation]
    width, height = image.size
    if mode == "squash":
        return image.resize((size, size), resampling)
    if mode == "longest":  # open_clip's ResizeKeepRatio and CenterCropOrPad
        ratio = max(width, height) / size
        target = (max(1, round(width / ratio)), max(1, round(height / ratio)))
        return _pad(image.resize(target, resampling), size, preprocess.fill)
    # torchvision's Resize(int): the long side is truncated, not rounded
    short, long = min(width, height), max(width, height)
    longer = int(size * long / short)
    target = (size, longer) if width <= height else (longer, size)
    left, top = round((target[0] - size) / 2.0), round((target[1] - size) / 2.0)
    if target[0] * target[1] > WIDEST_RESIZED_PIXELS:
        # within one grey level of the long way, at a millionth of its memory
        across, down = width / target[0], height / target[1]
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        return image.resize((size, size), resampling, box=_inside(box, width, height))
    if image.size != target:  # torchvision leaves a fitting picture alone; so does Pillow
        image = image.resize(target, resampling)
    return image.crop((left, top, left + size, top + size))


def _inside(
    box: tuple[float, float, float, float], width: int, height: int
) -> tuple[float, float, float, float]:
    left, top, right, bottom = box
    return max(0.0, left), max(0.0, top), min(float(width), right), min(float(height), bottom)


def _pad(image: Image.Image, size: int, fill: int) -> Image.Image:
    """Centre on a square of `fill`; torchvision's pad, then its centre crop."""
    width, height = image.size
    colour = fill if len(image.getbands()) == 1 else (fill,) * len(image.getbands())
    canvas = Image.new(image.mode, (size, size), colour)
    canvas.paste(image, (max(0, size - width) // 2, max(0, size - height) // 2))
    return canvas
