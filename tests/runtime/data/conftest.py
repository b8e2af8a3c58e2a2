"""A tiny backbone and a few pictures for the data side's tests."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

from tiny_tower import TinyBundle  # noqa: E402


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyBundle:
    """A two-segment backbone with random weights."""
    return TinyBundle(tmp_path_factory.mktemp("tiny"))


def encode(image: Image.Image, format_name: str = "PNG", **options: object) -> bytes:
    """A picture's file content."""
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Smooth random colours."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (max(2, height // 8), max(2, width // 8), bands))
    shape = pixels.astype(np.uint8) if bands > 1 else pixels[..., 0].astype(np.uint8)
    return Image.fromarray(shape, mode).resize((width, height))


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes an image folder: names -> content, or generated pictures for None."""

    def make(files: dict[str, bytes | None], name: str = "pictures") -> Path:
        folder = tmp_path / name
        for index, (path, content) in enumerate(files.items()):
            place = folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encode(noise(20, 16, seed=index)) if content is None else content)
        return folder

    return make
