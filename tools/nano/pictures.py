"""Unlabelled pictures for distilling: open clip art and emoji, as 224 px squares.

All of them may be used for anything: Debian's `openclipart-png` is in the public domain, npm's
`@iconify-json/noto` is Apache-2.0 and `@iconify-json/fluent-emoji-flat` is MIT.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import random
import subprocess
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession, SessionOptions
from PIL import Image

from tools.nano.teacher import write_pooled

EMOJI = ("@iconify-json/noto@1.2.9", "@iconify-json/fluent-emoji-flat@1.2.6")
CLIPART = "openclipart-png"
SIZE = 224
SIDES = (SIZE, 32, 48)  # as it is, and blurred: what a picture of so many pixels looks like
CHUNK = 250
LIMIT = 6000  # of 12,545: all of them gain nothing more
_BATCH = 10


def features(work: Path, workers: int = 2) -> np.ndarray:
    """(3, n, 1280) float32: what the teacher pools of each picture at each of `SIDES`.

    Chunks that exist under `work` are not computed again.
    """
    folder = work / "features"
    folder.mkdir(parents=True, exist_ok=True)
    chunks = {start: folder / f"{start:06d}.npy" for start in range(0, LIMIT, CHUNK)}
    missing = [start for start, path in chunks.items() if not path.is_file()]
    if missing:
        fetch(work)
        if not (work / "teacher.onnx").is_file():
            write_pooled(work / "teacher.onnx")
        listed = sources(work)
        parts = [listed[start : start + CHUNK] for start in missing]
        # a fork of a process in which torch has threads would wait for them for ever
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
            for start in pool.map(_chunk, [work] * len(missing), missing, parts):
                print(f"pictures: {start + CHUNK} of {LIMIT}", flush=True)
    return np.concatenate([np.load(path) for path in chunks.values()], 1).astype(np.float32)


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


def sources(work: Path) -> list[tuple[str, str | Path]]:
    """Every picture by name, in a fixed shuffled order: any beginning of it is a fair sample."""
    found: list[tuple[str, str | Path]] = list(_emoji(work))
    root = work / "clipart"
    # large files take a second each to read
    small = [path for path in sorted(root.rglob("*.png")) if path.stat().st_size < 60_000]
    found += [(str(path.relative_to(root)), path) for path in small]
    random.Random(0).shuffle(found)
    return found


def squares(part: list[tuple[str, str | Path]]) -> Iterator[Image.Image]:
    """224 px squares, each on a plain background.

    Pictures that cannot be read, or show next to nothing, are left out.
    """
    for name, source in part:
        choice = random.Random(name)  # a picture comes out the same whatever came before it
        try:
            picture = _read(source)
        except Exception:  # a few clip arts are broken; which ones does not matter
            continue
        if min(picture.size) < 24:
            continue
        colour = (choice.randrange(256), choice.randrange(256), choice.randrange(256))
        square = _compose(picture, choice.choice([_WHITE, _WHITE, colour]), choice)
        if np.asarray(square).std() > 8:
            yield square


_WHITE = (255, 255, 255)


def _chunk(work: Path, start: int, part: list[tuple[str, str | Path]]) -> int:
    options = SessionOptions()
    options.intra_op_num_threads = 1
    session = InferenceSession(str(work / "teacher.onnx"), options)
    pictures = list(squares(part))
    rows = []
    for side in SIDES:
        seen = np.stack([_blurred(picture, side) for picture in pictures])
        rows.append(
            np.concatenate(
                [
                    session.run(None, {"pixels": seen[i : i + _BATCH]})[0]
                    for i in range(0, len(seen), _BATCH)
                ]
            )
        )
    path = work / "features" / f"{start:06d}.npy"
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, np.stack(rows).astype(np.float16))
    partial.rename(path)
    return start


def _blurred(picture: Image.Image, side: int) -> np.ndarray:
    """(3, 224, 224) float32 in 0 to 255, of a picture of `side` px."""
    if side != SIZE:
        picture = picture.resize((side, side), Image.Resampling.BICUBIC)
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float32).transpose(2, 0, 1)


def _emoji(work: Path) -> Iterator[tuple[str, str]]:
    """(name, SVG) of every emoji; skin-tone variants, which are near copies, are left out."""
    for archive in sorted(work.glob("iconify-json-*.tgz")):
        with tarfile.open(archive) as tar:
            member = tar.extractfile("package/icons.json")
            assert member is not None
            icons = json.load(member)
        for name, icon in sorted(icons["icons"].items()):
            if "skin-tone" in name or name.startswith("flag"):
                continue
            width = icon.get("width", icons.get("width", 16))
            height = icon.get("height", icons.get("height", 16))
            yield (
                f"{icons['prefix']}/{name}",
                f'<svg xmlns="http://www.w3.org/2000/svg" '
                f'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>',
            )


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


def _compose(
    picture: Image.Image, shade: tuple[int, int, int], choice: random.Random
) -> Image.Image:
    """Fitted into the square, filling 60 to 110 % of it."""
    scale = SIZE * choice.uniform(0.6, 1.1) / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    canvas = Image.new("RGBA", (SIZE, SIZE), (*shade, 255))
    place = ((SIZE - size[0]) // 2, (SIZE - size[1]) // 2)
    layer = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    layer.paste(picture, place)
    return Image.alpha_composite(canvas, layer).convert("RGB")
