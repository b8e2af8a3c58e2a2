"""Unlabelled pictures for distilling: open clip art and emoji, as 224 px squares on disk.

All of them may be used for anything: Debian's `openclipart-png` is in the public domain, npm's
`@iconify-json/noto` is Apache-2.0 and `@iconify-json/fluent-emoji-flat` is MIT.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

EMOJI = ("@iconify-json/noto@1.2.9", "@iconify-json/fluent-emoji-flat@1.2.6")
CLIPART = "openclipart-png"
SIZE = 224
CHUNK = 250


def fetch(work: Path) -> None:
    """Download the three packages through their own clients, where they are not here yet."""
    work.mkdir(parents=True, exist_ok=True)
    if not list(work.glob("iconify-json-*.tgz")):
        subprocess.run(["npm", "pack", "--silent", *EMOJI], cwd=work, check=True)
    if not list(work.glob(f"{CLIPART}_*.deb")):
        subprocess.run(["apt-get", "download", CLIPART], cwd=work, check=True)
    if not (work / "clipart").is_dir():
        deb = next(work.glob(f"{CLIPART}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", deb.name, "clipart.part"], cwd=work, check=True)
        (work / "clipart.part").rename(work / "clipart")


def emoji(work: Path) -> list[tuple[str, str]]:
    """(name, SVG) of every emoji; skin-tone variants, which are near copies, are left out."""
    found = []
    for archive in sorted(work.glob("iconify-json-*.tgz")):
        with tarfile.open(archive) as tar:
            member = tar.extractfile("package/icons.json")
            assert member is not None
            icons = json.load(member)
        for name, icon in sorted(icons["icons"].items()):
            if "skin-tone" in name or name.startswith("flag"):
                continue
            width, height = (
                icon.get("width", icons.get("width", 16)),
                icon.get("height", icons.get("height", 16)),
            )
            found.append(
                (
                    f"{icons['prefix']}/{name}",
                    f'<svg xmlns="http://www.w3.org/2000/svg" '
                    f'xmlns:xlink="http://www.w3.org/1999/xlink" '
                    f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>',
                )
            )
    return found


def sources(work: Path) -> list[tuple[str, str | Path]]:
    """Every picture by name, in a fixed shuffled order: any beginning of it is a fair sample."""
    found: list[tuple[str, str | Path]] = list(emoji(work))
    root = work / "clipart"
    found += [(str(path.relative_to(root)), path) for path in _small(root)]
    random.Random(0).shuffle(found)
    return found


def _small(root: Path) -> list[Path]:
    """Clip art whose file is small: the large ones take a second each to read."""
    return [path for path in sorted(root.rglob("*.png")) if path.stat().st_size < 60_000]


def squares(work: Path, start: int, stop: int) -> Iterator[np.ndarray]:
    """(224, 224, 3) uint8: each on a plain background, every third blurred to 32 to 96 px.

    Pictures that cannot be read, or show next to nothing, are left out.
    """
    for index, (name, source) in enumerate(sources(work)[start:stop], start):
        choice = random.Random(name)  # a picture comes out the same whatever came before it
        try:
            picture = _read(source)
        except Exception:  # a few clip arts are broken; which ones does not matter
            continue
        if min(picture.size) < 24:
            continue
        colour = tuple(choice.randrange(256) for _ in range(3))
        shade = choice.choice([(255, 255, 255), (255, 255, 255), colour])
        square = _compose(picture, shade, choice)
        if index % 3 == 0:
            low = choice.choice([32, 32, 48, 64, 96])
            square = square.resize((low, low), Image.Resampling.BICUBIC)
            square = square.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        values = np.asarray(square)
        if values.std() > 8:
            yield values


def _read(source: str | Path) -> Image.Image:
    if isinstance(source, Path):
        with Image.open(source) as picture:
            if picture.width * picture.height > 4_000_000:
                raise ValueError("too large")
            picture.draft("RGB", (448, 448))
            return picture.convert("RGBA")
    import resvg_py

    drawn = resvg_py.svg_to_bytes(
        svg_string=source, width=SIZE, height=SIZE, skip_system_fonts=True
    )
    return Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")


def _compose(picture: Image.Image, shade: tuple[int, ...], choice: random.Random) -> Image.Image:
    """Fitted into the square, filling 60 to 110 % of it."""
    scale = SIZE * choice.uniform(0.6, 1.1) / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", (SIZE, SIZE), (*shade[:3], 255))
    place = ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2)
    layer = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    layer.paste(picture, place)
    return Image.alpha_composite(canvas, layer).convert("RGB")
