#!/usr/bin/env python
"""Ladders compared on validation pictures, so that the test pictures judge what is already chosen.

    tools/bench/variants.py --group importance --model nano-vit --profile default --out rows
    tools/bench/validate.py --bundle "rows/magnitude" --ladders rows --set head.kind=none ... \
        --data flowers5.zip --data cifar10.zip --shots 4 16 --out chosen.csv --against magnitude

Validation pictures come from the training side and are in no support set, whatever its seed: of
each class the first by a hash of the name, at most half of it. Every ladder is trained once per
task and judged on both; the tables of validation come first. One row an accuracy, `part` says
which; run it again and it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeladder.core.bundle import Bundle  # noqa: E402
from edgeladder.runtime.pictures.dataset import Picture, open_data, split  # noqa: E402
from tools.bench import result_rows  # noqa: E402
from tools.bench.fewshot import open_ladders  # noqa: E402
from tools.bench.figures import differences, table  # noqa: E402
from tools.bench.ladder_row import train_ladder  # noqa: E402
from tools.bench.result_rows import Row  # noqa: E402
from tools.bench.task import Divided, Pool, load_pool  # noqa: E402

_FIELDS = ["dataset", "shots", "seed", "method", "part", "accuracy", "seconds"]
PARTS = ("validation", "test")


def hold_out(data: Path, per_class: int) -> Divided:
    """The data without their validation pictures, and those."""
    dataset = open_data(data)
    by_class: dict[str, list[Picture]] = {}
    for picture in split(dataset, None, 0)[0]:
        by_class.setdefault(picture.label, []).append(picture)
    held: list[Picture] = []
    for pictures in by_class.values():
        pictures.sort(key=lambda p: hashlib.sha256(f"validation\0{p.path}".encode()).digest())
        held += pictures[: min(per_class, len(pictures) // 2)]
    paths = {picture.path for picture in held}
    left = [picture for picture in dataset.pictures if picture.path not in paths]
    return Divided(data.stem, replace(dataset, pictures=left), held)


def judge(pool: Pool, logits: np.ndarray) -> dict[str, float]:
    """Accuracy on either part of the pictures that no ladder was trained on."""
    right = logits.argmax(axis=1) == pool.test.labels
    first = pool.held
    return {"validation": float(right[:first].mean()), "test": float(right[first:].mean())}


def run(arguments: argparse.Namespace) -> list[Row]:
    """Train and judge what is not done; the file is written after every ladder."""
    bundle = Bundle.open(arguments.bundle)
    arguments.only_ladders, arguments.device_rows = True, None
    ladders = open_ladders(arguments, bundle)
    rows: list[Row] = result_rows.load(arguments.out)
    pools = [
        load_pool(
            bundle,
            hold_out(data, arguments.validation_per_class),
            arguments.cache,
            shots=max(arguments.shots),
            seeds=arguments.seeds,
            test_per_class=arguments.test_per_class,
        )
        for data in arguments.data
    ]
    # seeds last: what is interrupted has compared all ladders on all data
    for seed, shots, pool in itertools.product(range(arguments.seeds), arguments.shots, pools):
        task, done = pool.task(shots, seed), {tuple(map(str, _key(row))) for row in rows}
        for name, (opened, profile) in ladders.items():
            if (pool.name, str(shots), str(seed), name) in done:
                continue
            started = time.perf_counter()
            found = judge(pool, train_ladder(task, opened, profile)[0])
            seconds = round(time.perf_counter() - started, 3)
            for part, accuracy in found.items():
                values = (pool.name, shots, seed, name, part, round(accuracy, 6), seconds)
                rows.append(dict(zip(_FIELDS, values, strict=True)))
            result_rows.save(arguments.out, rows, _FIELDS)
    return rows


def _key(row: Row) -> list[object]:
    return [row[field] for field in _FIELDS[:4]]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True, help="whose tower fills the cache")
    parser.add_argument("--ladders", type=Path, help="a folder of bundles, each a ladder to train")
    parser.add_argument(
        "--ladder", action="append", default=[], metavar="NAME=BUNDLE[,A.B=C..]", help="a further"
    )
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path, default=Path("validation.csv"))
    parser.add_argument("--against", help="the ladder whose differences to the others are shown")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validation-per-class", type=int, default=40)
    parser.add_argument("--test-per-class", type=int, default=100)
    return parser.parse_args()


def main() -> None:
    """Run what is not done, and print the tables."""
    arguments = parse_arguments()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    rows = run(arguments)
    for part in PARTS:
        mine = [row for row in rows if row["part"] == part]
        print(f"## {part}\n\n{table(mine)}")
        if arguments.against:
            print(differences(mine, arguments.against))


if __name__ == "__main__":
    main()
