"""Pictures a second through each stage of precompute alone, and through precompute.

    python tools/bench/picture_stages.py --bundle BUNDLE --pictures 120 --size 4000x3000 --rounds 3

Pictures are made (edges and textures of every size, a sensor's grain, JPEG quality 92). Stages
run in this process, precompute as the program runs it, all in turn; medians. The slowest stage
alone is what precompute can reach where a core is free for each; on fewer cores the stages share
them, so the processor's time of each picture is said, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from edgeladder.core.bundle import Bundle
from edgeladder.runtime.cache.layout import EMBEDDING
from edgeladder.runtime.cache.store import ActivationCache, sample_key
from edgeladder.runtime.pictures.decode import decode_square, normalize
from edgeladder.runtime.towers.runner import ArraySamples, TowerRunner, TowerSizes

BATCH = 8


def photo(width: int, height: int, seed: int) -> Image.Image:
    """A picture that a codec finds neither easy nor impossible."""
    chance = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height))
    for cells in (4, 16, 64, 256):
        layer = Image.fromarray(chance.integers(0, 256, (cells, cells, 3), np.uint8))
        picture = Image.blend(picture, layer.resize((width, height), Image.Resampling.BICUBIC), 0.4)
    grain = np.asarray(picture, np.int16) + chance.normal(0, 5, (height, width, 1)).astype(np.int16)
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8))


def make_pictures(folder: Path, count: int, width: int, height: int) -> list[Path]:
    """Two classes of `count` JPEGs in all: a few are drawn, the rest are those turned and cut."""
    drawn = [photo(width, height, seed) for seed in range(4)]
    paths = []
    for number in range(count):
        image = drawn[number % 4].rotate(180) if number % 8 > 3 else drawn[number % 4]
        # each of its own: a picture that is there twice is decoded once
        image = image.crop((number % 64, number // 64, width, height))
        path = folder / "train" / ("left" if number % 2 else "right") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=92)
        paths.append(path)
    return paths


def timed(count: int, work: Callable[[], object]) -> tuple[float, float]:
    """Pictures a second, and milliseconds of the processor for each."""
    wall, used = time.perf_counter(), time.process_time()
    work()
    return count / (time.perf_counter() - wall), 1e3 * (time.process_time() - used) / count


class Stages:
    """What precompute does to a picture, a stage at a time."""

    def __init__(self, bundle: Bundle, paths: list[Path], threads: int):
        self.bundle, self.paths = bundle, paths
        self.preprocess = bundle.manifest.preprocess
        self.contents = [path.read_bytes() for path in paths]
        squares = np.stack([decode_square(item, self.preprocess) for item in self.contents])
        self.pixels = normalize(squares, self.preprocess)
        sizes = TowerSizes(batch=BATCH, threads=threads, whole=True)
        self.tower = TowerRunner(bundle, "image", sizes, Path(tempfile.gettempdir()))
        self.outputs: list[dict[str, np.ndarray]] = []
        self.pass_tower()  # opens the sessions

    def read(self) -> None:
        """Files read and hashed."""
        for path in self.paths:
            hashlib.sha256(path.read_bytes()).digest()

    def decode(self) -> None:
        """Decoded and resized, one by one."""
        for content in self.contents:
            decode_square(content, self.preprocess)

    def pass_tower(self) -> None:
        """The image tower, sessions open."""
        self.outputs.clear()
        self.tower.run(ArraySamples(self.pixels), lambda _, found: self.outputs.append(found))

    def write(self) -> None:
        """Samples into a new cache, in order."""
        with tempfile.TemporaryDirectory() as place:
            cache = ActivationCache.open(
                Path(place), self.bundle, "image", "fp16", writable=True, tell=None
            )
            with cache.writing():
                number = 0
                for found in self.outputs:
                    keys = [sample_key(bytes([1]) * 8 + (number + row).to_bytes(8, "big"))
                            for row in range(len(found[EMBEDDING]))]  # fmt: skip
                    cache.put(keys, found)
                    number += len(keys)


def precompute(bundle: Path, data: Path, budget: str) -> float:
    """Pictures a second, as the program says."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "edgeladder", "precompute", "--bundle", str(bundle)]
        command += ["--data", str(data), "--budget", budget, "--cache", f"{place}/c", "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["images_per_second"])


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=120)
    parser.add_argument("--size", default="4000x3000", help="WIDTHxHEIGHT")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", default="600MB")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as place:
        paths = make_pictures(Path(place), options.pictures, width, height)
        stages = Stages(Bundle.reopen(options.bundle), paths, options.threads)
        named = {
            "read and hash": stages.read,
            "decode and resize": stages.decode,
            "tower": stages.pass_tower,
            "write": stages.write,
        }
        for _ in range(options.rounds):
            for name, work in named.items():
                found.setdefault(name, []).append(timed(len(paths), work))
            whole = precompute(options.bundle, Path(place), options.budget)
            found.setdefault("precompute", []).append((whole, 0.0))
    print(f"{options.pictures} pictures of {options.size}, {options.threads} threads\n")
    print("| stage | pictures/s alone | ms of the processor |\n|---|---|---|")
    medians = {n: [statistics.median(c) for c in zip(*r, strict=True)] for n, r in found.items()}
    for name, (rate, used) in medians.items():
        print(f"| {name} | {rate:.3g} | {f'{used:.3g}' if used else ''} |")
    slowest = min((row[0], name) for name, row in medians.items() if name != "precompute")
    share = medians["precompute"][0] / slowest[0]
    print(f"\nprecompute / slowest stage alone ({slowest[1]}): {share:.2f}")


if __name__ == "__main__":
    main()
