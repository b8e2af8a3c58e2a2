#!/usr/bin/env python
"""Few-shot accuracy of every method on the same cache, splits and seeds.

    tools/bench/fewshot.py --bundle bundle --data pictures.zip --data other.zip --out bench

Rows: zero-shot; linear probe, LP++, Tip-Adapter-F, TaskRes, ProLIP, GDA, ProKeR on the final
embedding; the multi-tap leave-one-out kernel; and ladders, each named with the bundle that was
exported with its profile (`--ladder default=bundle`, the same backbone), alone and with the
kernel as a term. Settings are fixed or chosen on the support set; the test pictures are used once,
to count. Writes results.csv (every run), table.md (means and standard errors) and plot.svg.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from baselines import METHODS, Support  # noqa: E402
from figures import plot, table  # noqa: E402
from ladder_row import train_ladder  # noqa: E402
from task import Task, load_pool  # noqa: E402

from edgeladder.bundle import Bundle  # noqa: E402
from edgeladder.config import Profile, override  # noqa: E402
from edgeladder.device.infer.heads import Head, fit_head  # noqa: E402

Array = np.ndarray
_CHUNK = 256
Row = dict[str, object]


def support_of(task: Task) -> Support:
    """The task for a head on final embeddings."""
    return Support(
        task.support.embedding,
        task.support.labels,
        task.text.embedding,
        task.bundle.manifest.model.logit_scale,
        task.shots,
        task.support.extra.get("image_embedding_pre"),
    )


def head_of(task: Task, kind: str) -> Head:
    """A closed-form head fitted on the support set."""
    features = task.support.features()
    zero_shot = task.zero_shot(task.support.embedding)
    return fit_head(kind, features, task.support.labels, zero_shot)  # type: ignore[arg-type]


def head_logits(task: Task, head: Head) -> Array:
    """Of the test pictures (m, C), some at a time."""
    parts = []
    for start in range(0, len(task.test.labels), _CHUNK):
        features = task.test.features(start, start + _CHUNK)
        parts.append(head.logits(features, task.zero_shot(features[-1])))
    return np.concatenate(parts)


def run_task(task: Task, ladders: dict[str, tuple[Bundle, Profile]]) -> list[Row]:
    """Every method once; one row each."""
    rows: list[Row] = []

    def count(method: str, logits: Callable[[], Array]) -> Array:
        started = time.perf_counter()
        given = logits()
        rows.append(
            {
                "dataset": task.name,
                "shots": task.shots,
                "seed": task.seed,
                "method": method,
                "accuracy": float((given.argmax(axis=1) == task.test.labels).mean()),
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
        return given

    support, before = support_of(task), task.test.extra.get("image_embedding_pre")
    for name, method in METHODS.items():
        count(name, lambda method=method: method(support)(task.test.embedding, before))
    names = {"gda": "GDA", "proker": "ProKeR", "kernel": "multi-tap kernel"}
    given = {
        kind: count(name, lambda kind=kind: head_logits(task, head_of(task, kind)))
        for kind, name in names.items()
    }
    for name, (bundle, profile) in ladders.items():
        tuned = count(f"ladder {name}", lambda b=bundle, p=profile: train_ladder(task, b, p)[0])
        count(f"ladder {name} + kernel", lambda t=tuned: t + given["kernel"])
    return rows


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True, help="whose backbone is used")
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument(
        "--ladder",
        action="append",
        default=[],
        metavar="NAME=BUNDLE",
        help="a ladder to train, from its bundle",
    )
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--test-per-class", type=int, default=None)
    return parser.parse_args()


def main() -> None:
    """Run all tasks; results so far are on disk after each."""
    arguments = parse_arguments()
    bundle = Bundle.open(arguments.bundle)
    ladders: dict[str, tuple[Bundle, Profile]] = {}
    for entry in arguments.ladder:
        name, _, folder = entry.partition("=")
        opened = Bundle.open(folder or arguments.bundle)
        ladders[name] = (opened, override(opened.manifest.profile, arguments.settings))
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for data in arguments.data:
        pool = load_pool(
            bundle,
            data,
            arguments.cache,
            shots=max(arguments.shots),
            seeds=arguments.seeds,
            test_per_class=arguments.test_per_class,
        )
        for shots in arguments.shots:
            for seed in range(arguments.seeds):
                rows += run_task(pool.task(shots, seed), ladders)
                save(arguments.out, rows)
            print(f"{pool.name}, {shots} shots: done", file=sys.stderr, flush=True)
    print(table(rows))


def save(folder: Path, rows: list[Row]) -> None:
    """results.csv, table.md, plot.svg."""
    with open(folder / "results.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (folder / "table.md").write_text(table(rows), encoding="utf-8")
    (folder / "plot.svg").write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
