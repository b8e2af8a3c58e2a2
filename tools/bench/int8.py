#!/usr/bin/env python
"""Precompute with the towers of several exports of one model, alternating: speed and peak.

    python -m tools.bench.int8 model --name ViT-B-16 --out outliers.pt   # a host with open_clip
    python -m tools.bench.int8 run --bundle fp32=B16 --bundle int8=B16-int8 --out int8-speed.csv
    python -m tools.bench.int8 table int8-speed.csv --against fp32
    python -m tools.bench.int8 cosines --bundle fp32=B16 --bundle int8=B16-int8

`model` makes random weights with outliers planted where CLIP has them: a few channels of the
residual stream that are forty times as large as the others, weights that read them smaller by as
much. `edgeladder export --pretrained outliers.pt` with and without `--dtype int8` makes the
bundles. `run` is `edgeladder precompute` on pictures that it draws, from an empty cache each time,
under a budget that holds the whole tower and one that streams it, every bundle in turn in every
round. `cosines` sets taps and embeddings of the second bundle beside the first's, on such pictures,
none of which calibrated anything.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

MB = 1_000_000
COLUMNS = (
    *("bundle", "way", "round", "pictures", "images_per_second"),
    *("cpu_seconds", "planned_mb", "measured_mb", "load"),
)
_CHANNELS, _FACTOR = 6, 40.0
_SIDES = (640, 480)  # of drawn pictures, px


def plant_outliers(name: str, out: Path) -> None:
    """Write a state dict of an open_clip ViT with random weights and outlier channels."""
    import open_clip
    import torch

    torch.manual_seed(0)
    model = open_clip.create_model(name)
    towers = (
        (model.visual.transformer.resblocks, model.visual.ln_pre.weight),
        (model.transformer.resblocks, None),
    )
    with torch.no_grad():
        for blocks, first in towers:
            width = blocks[0].ln_1.weight.numel()
            channels = torch.randperm(width)[:_CHANNELS]
            if first is not None:
                first[channels] *= _FACTOR
            else:
                model.positional_embedding[:, channels] *= _FACTOR
            for block in blocks:
                for norm, reader in (
                    (block.ln_1, block.attn.in_proj_weight),
                    (block.ln_2, block.mlp.c_fc.weight),
                ):
                    norm.weight.copy_(torch.exp(0.3 * torch.randn(width)))
                    norm.bias.copy_(0.1 * torch.randn(width))
                    reader[:, channels] /= _FACTOR / 4
    torch.save(model.state_dict(), out)


def draw_pictures(folder: Path, count: int) -> None:
    """`count` JPEGs of 640 x 480, no two alike, in two classes."""
    from PIL import Image

    from edgeladder.runtime.pictures.drawn import drawn_pictures

    drawn = drawn_pictures(max(_SIDES))[:, : _SIDES[1], : _SIDES[0]]
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        shift = np.roll(drawn[number % len(drawn)], random.integers(1, _SIDES[1]), axis=number % 2)
        rough = shift.astype(np.int16) + random.integers(-12, 13, shift.shape)
        picture = Image.fromarray(np.clip(rough, 0, 255).astype(np.uint8))
        picture.save(place / f"{number:04d}.jpg", quality=90)


def one(bundle: Path, pictures: Path, budget: str) -> dict[str, Any]:
    """One `edgeladder precompute` from nothing."""
    with tempfile.TemporaryDirectory() as cache:
        call = [sys.executable, "-m", "edgeladder", "precompute", "--json", "--bundle", str(bundle)]
        call += ["--data", str(pictures), "--cache", cache, "--budget", budget]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(call)}: {done.stdout[-500:]} {done.stderr[-500:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**json.loads(done.stdout), "cpu_seconds": spent}


def run(options: argparse.Namespace) -> None:
    """Every bundle and budget in turn, rounds of them."""
    bundles = dict(item.split("=", 1) for item in options.bundle)
    fresh = not options.out.exists()
    with tempfile.TemporaryDirectory() as folder, options.out.open("a", newline="") as stream:
        draw_pictures(Path(folder), options.pictures)
        writer = csv.DictWriter(stream, COLUMNS)
        if fresh:
            writer.writeheader()
        for number in range(options.rounds):
            for way, budget in (("whole", options.whole), ("streamed", options.streamed)):
                for name, bundle in bundles.items():
                    found = one(Path(bundle), Path(folder), budget)
                    phase = found["memory"]["phases"]["precompute"]
                    row = {
                        "bundle": name,
                        "way": way,
                        "round": number,
                        "pictures": found["new"],
                        "images_per_second": found["images_per_second"],
                        "cpu_seconds": round(found["cpu_seconds"], 1),
                        "planned_mb": round(phase["planned_peak_bytes"] / MB, 1),
                        "measured_mb": round(phase["measured_peak_bytes"] / MB, 1),
                        "load": round(os.getloadavg()[0], 1),
                    }
                    writer.writerow(row)
                    stream.flush()
                    print(row, file=sys.stderr)


def outputs(bundle: Path, pictures: Path, threads: int) -> dict[str, np.ndarray]:
    """Taps and embedding of every picture, streamed."""
    from edgeladder.core.bundle import Bundle
    from edgeladder.runtime.pictures.decode import decode_square, normalize
    from edgeladder.runtime.towers.runner import ArraySamples, TowerRunner, TowerSizes

    opened = Bundle.open(bundle, verify=False)
    preprocess = opened.manifest.preprocess
    files = sorted(pictures.rglob("*.jpg"))
    squares = np.stack([decode_square(path.read_bytes(), preprocess) for path in files])
    found: dict[str, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        runner = TowerRunner(opened, "image", TowerSizes(threads=threads), Path(folder))

        def keep(_: int, some: dict[str, np.ndarray]) -> None:
            for name, values in some.items():
                found.setdefault(name, []).append(values.copy())

        runner.run(ArraySamples(normalize(squares, preprocess)), keep)
        runner.close()
    return {name: np.concatenate(parts) for name, parts in found.items()}


def cosines(options: argparse.Namespace) -> None:
    """The least over pictures, a tap or embedding as one vector, with outliers and without."""
    first, second = (Path(item.split("=", 1)[1]) for item in options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        draw_pictures(Path(folder), options.pictures)
        expected, found = (outputs(b, Path(folder), options.threads) for b in (first, second))
    print("| output | least cosine | without its largest channels |\n|---|---|---|")
    for name, reference in expected.items():
        # what is large is right by itself: the others are looked at too
        size = np.abs(reference.reshape(-1, reference.shape[-1])).mean(0)
        others = np.argsort(size)[:-_CHANNELS]
        least = [
            least_cosine(found[name][..., some], reference[..., some])
            for some in (np.arange(len(size)), others)
        ]
        print(f"| {name} | {least[0]:.4f} | {least[1]:.4f} |")


def least_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """The least over the samples, each output (n, ..) of a sample as one vector."""
    left, right = (x.reshape(len(x), -1).astype(np.float64) for x in (found, expected))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(1) / lengths).min())


def table(rows: list[dict[str, str]], against: str) -> str:
    """Medians by way and bundle, and their ratios, as Markdown."""
    lines = [
        f"| way | bundle | pictures/s | of {against} | CPU s | planned MB | measured MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for way in dict.fromkeys(row["way"] for row in rows):
        some = [row for row in rows if row["way"] == way]
        for name in dict.fromkeys(row["bundle"] for row in some):
            mine = [row for row in some if row["bundle"] == name]
            speeds = {row["round"]: float(row["images_per_second"]) for row in mine}
            theirs = {
                row["round"]: float(row["images_per_second"])
                for row in some
                if row["bundle"] == against
            }
            ratio = median(speed / theirs[key] for key, speed in speeds.items() if key in theirs)
            spent = median(float(row["cpu_seconds"]) for row in mine)
            peaks = [max(float(row[key]) for row in mine) for key in ("planned_mb", "measured_mb")]
            lines.append(
                f"| {way} | {name} | {median(speeds.values()):.2f} | {ratio:.2f} | {spent:.1f} | "
                f"{peaks[0]:.0f} | {peaks[1]:.0f} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Make a model, run, or show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    model = commands.add_parser("model")
    model.add_argument("--name", default="ViT-B-16")
    model.add_argument("--out", type=Path, required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--bundle", action="append", required=True, help="NAME=FOLDER")
    runs.add_argument("--pictures", type=int, default=64)
    runs.add_argument("--rounds", type=int, default=3)
    runs.add_argument("--whole", default="2GB", help="a budget that holds the tower")
    runs.add_argument("--streamed", default="192MB", help="one that does not")
    runs.add_argument("--out", type=Path, required=True)
    beside = commands.add_parser("cosines")
    beside.add_argument("--bundle", action="append", required=True, help="NAME=FOLDER, twice")
    beside.add_argument("--pictures", type=int, default=16)
    beside.add_argument("--threads", type=int, default=2)
    shown = commands.add_parser("table")
    shown.add_argument("rows", type=Path)
    shown.add_argument("--against", default="fp32")
    options = parser.parse_args()
    if options.command == "model":
        plant_outliers(options.name, options.out)
    elif options.command == "run":
        run(options)
    elif options.command == "cosines":
        cosines(options)
    else:
        with options.rows.open(newline="") as stream:
            print(table(list(csv.DictReader(stream)), options.against))
    return 0


if __name__ == "__main__":
    sys.exit(main())
