"""Data sets of any size for `edgeladder train`, with nothing to compute: a .zip and a full cache.

A picture is a line of text, and its activations are random numbers under the key that `train` looks
it up by. So the real command runs on a hundred thousand pictures as soon as their cache is written.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edgeladder.runtime.cache.store import sample_key
from edgeladder.runtime.pictures.dataset import open_data
from edgeladder.runtime.towers.class_run import prompts_key
from edgeladder.runtime.towers.tokens import class_prompts
from tools.bench.fabricate import fill

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle

_SMALL = (40, 30)  # of a drawn picture: enlarged, it costs a decoder what a camera's does
_LARGE = (640, 480)


def text_picture(number: int) -> bytes:
    """What no decoder can read: for a cache that has it already."""
    return f"picture {number}".encode()


def drawn_picture(number: int) -> bytes:
    """A JPEG of coloured blobs."""
    random = np.random.default_rng(number)
    small = random.integers(0, 255, (*_SMALL[::-1], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(small).resize(_LARGE).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def write_data(path: Path, pictures: int, classes: int, test: int, *, drawn: bool) -> Path:
    """A .zip of so many training and test pictures, classes in turn; one that is there stays."""
    if path.is_file():
        return path
    partial = path.with_name(path.name + ".part")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
        for number, (side, label) in enumerate(_places(pictures, classes, test)):
            content = drawn_picture(number) if drawn else text_picture(number)
            archive.writestr(f"{side}/class{label:05d}/{number:07d}.jpg", content)
    partial.rename(path)
    return path


def _places(pictures: int, classes: int, test: int) -> Iterator[tuple[str, int]]:
    for side, count in (("train", pictures), ("test", test)):
        for number in range(count):
            yield side, number % classes


def fill_cache(bundle: Bundle, cache: Path, data: Path, pictures: int) -> None:
    """Random activations of `write_data`'s text pictures, and of its classes; what is there stays.

    Args:
        pictures: of both sides together.
    """
    keys = [sample_key(hashlib.sha256(text_picture(n)).digest()) for n in range(pictures)]
    fill(bundle, cache, "image", keys)
    fill(bundle, cache, "text", [prompts_key(t) for t in class_prompts(open_data(data).names)])
