#!/usr/bin/env python
"""Prompt tuning through the backbone and `edgeladder train`, on the same pictures, in one run.

    tools/bench/peers/side_by_side.py --bundle vit-bundle --weights nano-vit.safetensors \
        --data flowers5.zip --data cifar10.zip --test-per-class 50 --out bench

Host only; `edgeladder train` may be given a device's --python, without torch. Every row is one
process (or, of EdgeLadder, one process tree), one at a time and on one thread, in the order of the
seeds, so that wherever it is stopped the finished rows are balanced; run again it goes on. Pictures
are laid out once, as a folder that both sides read: all of the training side, and the first so many
test pictures of each class; names have no aliases. OUT/peers.csv has accuracy, zero-shot accuracy,
seconds and CPU seconds to a tuned model (features included; shared ones are charged at what they
cost), and the peaks, at all and in training. With --base-to-new OUT/base-to-new.csv: trained on
half of the classes, tested on both halves, each among its own names. With --steps 3 OUT/cost.csv:
peers stop there and do not test; what a step takes, and how many the recipe has.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from edgeladder.core.bundle import Bundle  # noqa: E402
from edgeladder.core.errors import DataError  # noqa: E402
from edgeladder.runtime.pictures.class_names import FILE, parse_names  # noqa: E402
from edgeladder.runtime.pictures.dataset import open_data, split  # noqa: E402
from tools.bench.peers.measured import Measured, environment, run_measured, told  # noqa: E402
from tools.bench.peers.methods import METHODS  # noqa: E402
from tools.bench.peers.run import Opened, measure, open_model, parse_arguments  # noqa: E402
from tools.bench.peers.tasks import first_of  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
_NAMES = ROOT / "tools" / "nano" / "classes"
_TRAIN = "from edgeladder.cli.app import run; run()"
# the bundle's recipe without its closed-form head, and as it is
_ALONE = ["--set", "head.kind=none", "--set", "head.weight=null"]
LADDERS: dict[str, list[str]] = {"edgeladder-ladder": _ALONE, "edgeladder": []}
_RUN = ["dataset", "shots", "seed", "method"]
_COST = [
    "seconds",
    "cpu_seconds",
    "peak_rss_bytes",
    "train_peak_rss_bytes",
    "loaded_rss_bytes",
    "steps",
]
_COST += ["trained_parameters", "wall_seconds", "first_loss", "last_loss"]
COST_FIELDS = [*_RUN, *_COST, "all_steps", "cpu_seconds_per_step"]
FIELDS = [*_RUN, "accuracy", "zero_shot", *_COST]
NEW_FIELDS = [*_RUN, "accuracy", "new_accuracy", "harmonic", "zero_shot", "new_zero_shot"]
NEW_FIELDS += ["zero_shot_harmonic", *_COST]
Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One row to be."""

    data: Path  # the folder of pictures
    shots: int
    seed: int
    method: str

    @property
    def key(self) -> tuple[str, str, str, str]:
        """As the CSV has it."""
        return self.data.name, str(self.shots), str(self.seed), self.method


def lay_out(data: Path, target: Path, per_class: int) -> Path:
    """Write a data set as train/ and test/ folders, the test side cut to its first pictures.

    Names are the readable ones of tools/nano/classes without their aliases, which were chosen on
    labelled pictures. Returns `target`; one that exists is taken as it is.
    """
    if target.is_dir():
        return target
    dataset = open_data(data)
    train, test = split(dataset, None, 0)
    partial = target.with_name(target.name + ".part")
    for side, pictures in (("train", train), ("test", first_of(test, per_class))):
        for index, picture in enumerate(pictures):
            name = f"{index:05d}{Path(picture.path).suffix.lower()}"
            path = partial / side / picture.label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture.read())
    names, written = dataset.names, _NAMES / f"{data.stem}.yaml"
    if written.is_file():
        text = written.read_text(encoding="utf-8")
        names, _ = parse_names(text, dataset.classes, where=str(written))
    lines = [
        f"{json.dumps(folder)}: {json.dumps(name.name)}"
        for folder, name in zip(dataset.classes, names, strict=True)
    ]
    (partial / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.rename(target)
    return target


def cells(given: argparse.Namespace, folders: list[Path]) -> Iterator[Cell]:
    """Every row in the order of running: whole seeds, then shots, data sets and methods."""
    most = dict(item.split("=") for item in given.at_most)
    for seed, shots, data in itertools.product(range(given.seeds), given.shots, folders):
        for method in given.methods:
            if shots <= int(most.get(method, shots)):
                yield Cell(data, shots, seed, method)


def peer_row(cell: Cell, given: argparse.Namespace, opened: Opened) -> Row:
    """A peer, in a process of its own: a fork, which finds torch and the backbone loaded."""
    line = ["--images-once", "--method", cell.method, "--data", str(cell.data)]
    line += ["--model", given.model, "--pretrained", given.weights]
    line += ["--shots", str(cell.shots), "--seed", str(cell.seed)]
    line += ["--features", str(given.out / f"{cell.data.name}.npz")]
    line += ["--base-to-new"] if given.base_to_new else []
    line += ["--steps", str(given.steps)] if given.steps else []
    started = time.perf_counter()
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(send, parse_arguments(line), opened))
    process.start()
    send.close()  # so that a child that dies ends the waiting
    try:
        row: Row = receive.recv()
    except EOFError as error:
        process.join()
        raise DataError(f"run.py ended with {process.exitcode}", where=" ".join(line)) from error
    process.join()
    return row | {"wall_seconds": round(time.perf_counter() - started, 1)}


def _answer(send: Connection, arguments: argparse.Namespace, opened: Opened) -> None:
    send.send(measure(arguments, opened))


def ladder_row(cell: Cell, given: argparse.Namespace) -> Row:
    """`edgeladder train`, its process tree; the cache is the data set's and shared."""
    runs = given.out / "runs" / "-".join(cell.key)
    command = [given.python, "-c", _TRAIN, "train", "--json", "--bundle", str(given.bundle)]
    command += ["--data", str(cell.data), "--cache", str(given.out / "cache" / cell.data.name)]
    command += ["--shots", str(cell.shots), "--seed", str(cell.seed), "--run", str(runs)]
    command += ["--budget", given.budget, *LADDERS[cell.method]]
    done = run_measured(command, environment())
    result = told(done)
    wall, busy = picture_cost(given.out / f"{cell.data.name}.json", result, done)
    support = result["counts"]["train"]
    ladder = Bundle.open(given.bundle).manifest.ladder
    return {
        "accuracy": result["accuracy"]["tuned"],
        "zero_shot": result["accuracy"]["zero_shot"],
        "seconds": round(result["seconds"]["train"] + support * wall, 2),
        "cpu_seconds": round(done.phase_cpu.get("train", 0.0) + support * busy, 2),
        "peak_rss_bytes": done.peak_rss,
        "train_peak_rss_bytes": done.phase_peak.get("train"),
        "steps": result["steps"],
        "all_steps": result["steps"],
        # a closed-form head is fitted, not trained
        "trained_parameters": sum(math.prod(p.shape) for p in ladder.parameters),
        "wall_seconds": round(done.seconds, 1),
        "last_loss": result["loss"],
    }


def picture_cost(path: Path, result: Row, done: Measured) -> tuple[float, float]:
    """Seconds and CPU seconds of a picture's activations, as the data set's first run paid them."""
    if not path.is_file():
        new = result["cache"]["new"]
        wall = result["seconds"]["precompute"] / new
        path.write_text(json.dumps([wall, done.phase_cpu["precompute"] / new]), encoding="utf-8")
    wall, busy = json.loads(path.read_text(encoding="utf-8"))
    return float(wall), float(busy)


def command_line() -> argparse.Namespace:
    """This command's line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--weights", required=True, help="the peers' backbone, the bundle's own")
    parser.add_argument("--model", default="nano-vit")
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--shots", type=int, nargs="+", default=[16, 4, 1])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *LADDERS])
    parser.add_argument(
        "--at-most", nargs="*", default=[], metavar="METHOD=SHOTS", help="leave the longest out"
    )
    parser.add_argument("--test-per-class", type=int, default=50)
    parser.add_argument("--budget", default="256MB", help="of `edgeladder train`")
    parser.add_argument("--python", default=sys.executable, help="of `edgeladder train`")
    parser.add_argument("--base-to-new", action="store_true", help="the peers alone")
    parser.add_argument("--steps", type=int, help="of a peer: costs alone")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.methods = given.methods or [*METHODS, *([] if given.base_to_new else LADDERS)]
    if given.base_to_new and set(given.methods) & set(LADDERS):
        parser.error("--base-to-new is for the peers")
    return given


def main() -> None:
    """Row after row."""
    given = command_line()
    torch.set_num_threads(1)  # no threads, so that it can be forked
    given.out.mkdir(parents=True, exist_ok=True)
    folders = [
        lay_out(data, given.out / "pictures" / data.stem, given.test_per_class)
        for data in given.data
    ]
    name, fields = ("base-to-new", NEW_FIELDS) if given.base_to_new else ("peers", FIELDS)
    name, fields = ("cost", COST_FIELDS) if given.steps else (name, fields)
    table = given.out / f"{name}.csv"
    done = set()
    if table.is_file():
        with table.open(newline="") as file:
            done = {tuple(row[name] for name in _RUN) for row in csv.DictReader(file)}
    else:
        table.write_text(",".join(fields) + "\n", encoding="utf-8")
    opened = open_model(given.model, given.weights)
    for cell in cells(given, folders):
        if cell.key in done:
            continue
        ladder = cell.method in LADDERS
        row = ladder_row(cell, given) if ladder else peer_row(cell, given, opened)
        row = row | dict(zip(_RUN, cell.key, strict=True))
        with table.open("a", newline="") as file:
            writer = csv.DictWriter(file, fields, extrasaction="ignore", lineterminator="\n")
            writer.writerow(row)
        print(" ".join(cell.key), f"in {row['wall_seconds']} s", flush=True)


if __name__ == "__main__":
    main()
