#!/usr/bin/env python
"""What unlabelled pictures teach the closed-form head, by the product's own pseudo-labels.

    python -m tools.bench.unlabelled --bundle edgeladder/_nano/bundle --data clothing.zip \
        --data rsscn7.zip --csv unlabelled.csv                          # training pictures judge
    python -m tools.bench.unlabelled ... --part test --seeds 5          # test pictures judge, once

Of each class some training pictures are the support set, some others the pool, whose labels nobody
sees, and some more judge, or test pictures do. `even` is told that all classes are equally common
(`unlabelled.classes=even`), `estimated` is told nothing. Pools: even; skewed ten to one; two fifths
of other data sets' pictures; ten a class.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeladder.budget import policy
from edgeladder.core.bundle import Bundle
from edgeladder.jobs.pseudo_label_phase import how_to_label
from edgeladder.runtime.heads.closed_form import Blend, Head
from edgeladder.runtime.heads.head_inputs import HeadInputs
from edgeladder.runtime.heads.self_training import self_train
from tools.bench import result_rows
from tools.bench.ladder_row import train_ladder
from tools.bench.product_heads import fitted, inputs_of
from tools.bench.result_rows import Row
from tools.bench.task import Pool, Task, load_pool, load_training_pool

Array = np.ndarray
POOLS = ("even", "skewed", "strangers", "few")
_FIELDS = ["part", "dataset", "shots", "seed", "pool", "method", "accuracy"]
_JUDGES, _MOST_SHOTS, _POOL = 60, 16, 80


def labels_of(head: Head, support: HeadInputs, pool: HeadInputs, *, even: bool) -> Array:
    """Pseudo-labels of the pool; -1: none."""
    assert isinstance(head, Blend)
    known, count, classes = len(support.labels), len(pool.labels), pool.zero_shot.shape[1]
    most = policy.wanted_pseudo_labelled(known, count, classes)
    how = how_to_label(known, count, classes, even=even, most=most)
    return self_train(head, support, pool.rows, count, how).labels


def taught(head: Head, support: HeadInputs, pool: HeadInputs, *, even: bool) -> Head:
    """The head that support set and pool make together."""
    found = labels_of(head, support, pool, even=even)
    rows = np.flatnonzero(found >= 0)
    more = replace(pool.rows(rows), labels=found[rows])
    return fitted("blend", support.followed_by(more), len(support.labels))


@dataclass(frozen=True)
class Division:
    """Rows of the training pictures."""

    support: Array
    pool: Array
    judges: Array


def divide(labels: Array, shots: int, seed: int, pool: str) -> Division:
    """Judges first, so that they are the same for every number of shots; then support and pool."""
    chance = np.random.default_rng(1000 + seed)
    names = np.unique(labels)
    sizes = np.full(len(names), 10 if pool == "few" else _POOL)
    if pool == "skewed":
        sizes = np.random.default_rng(seed).permutation(np.geomspace(8, 80, len(names)).round())
    parts: list[list[Array]] = [[], [], []]
    for label, size in zip(names, sizes, strict=True):
        rows = chance.permutation(np.flatnonzero(labels == label))
        held = min(_JUDGES, max(20, (len(rows) - _MOST_SHOTS) // 2))
        rest = rows[held:]
        for part, chosen in zip(
            parts, (rest[:shots], rest[_MOST_SHOTS : _MOST_SHOTS + int(size)], rows[:held]),
            strict=True,
        ):  # fmt: skip
            part.append(chosen)
    return Division(*(np.concatenate(part) for part in parts))


def measure(
    pools: list[Pool], place: int, shots: int, seed: int, kind: str, part: str
) -> list[Row]:
    """Accuracies on the judges: without the pool, and with it in each way."""
    mine = pools[place]
    rows = divide(mine.train.labels, shots, seed, kind)
    unlabelled = inputs_of(mine, mine.train.part(rows.pool))
    if kind == "strangers":
        others = [pool for number, pool in enumerate(pools) if number != place]
        for other in others:
            count = 2 * len(rows.pool) // (3 * len(others))
            chosen = np.random.default_rng(seed).permutation(len(other.train.labels))[:count]
            unlabelled = unlabelled.followed_by(inputs_of(mine, other.train.part(chosen)))
    support = inputs_of(mine, mine.train.part(rows.support))
    alone = fitted("blend", support, len(support.labels))
    heads = {
        "support alone": alone,
        "even": taught(alone, support, unlabelled, even=True),
        "estimated": taught(alone, support, unlabelled, even=False),
    }
    asked = inputs_of(mine, mine.test if part == "test" else mine.train.part(rows.judges))
    common = {"part": part, "dataset": mine.name, "shots": shots, "seed": seed, "pool": kind}
    found: list[Row] = []
    for name, head in heads.items():
        right = head.logits(asked.features, asked.zero_shot).argmax(axis=1) == asked.labels
        found.append(common | {"method": name, "accuracy": round(float(right.mean()), 4)})
    return found


def ladders(pool: Pool, shots: int, seed: int, kind: str, part: str) -> list[Row]:
    """The ladder alone, trained on the support set, and on it and the pool told nothing."""
    rows, bundle = divide(pool.train.labels, shots, seed, kind), pool.bundle
    support = inputs_of(pool, pool.train.part(rows.support))
    alone = fitted("blend", support, len(support.labels))
    found = labels_of(alone, support, inputs_of(pool, pool.train.part(rows.pool)), even=False)
    more = rows.pool[found >= 0]
    relabelled = copy.copy(pool.reader(bundle))
    relabelled.train_labels = relabelled.train_labels.copy()
    relabelled.train_labels[more] = found[found >= 0]
    told = replace(pool, readers={bundle.folder: relabelled})
    judges = pool.test if part == "test" else pool.train.part(rows.judges)
    common = {"part": part, "dataset": pool.name, "shots": shots, "seed": seed, "pool": kind}
    done: list[Row] = []
    for name, taught_by in (("ladder", more[:0]), ("ladder, estimated", more)):
        mine = np.concatenate([rows.support, taught_by])
        task = Task(
            pool.name, bundle, pool.train.part(mine), judges, pool.text, shots, seed, mine, told,
            len(rows.support),
        )  # fmt: skip
        logits, _ = train_ladder(task, bundle, bundle.manifest.profile)
        right = float((logits.argmax(axis=1) == judges.labels).mean())
        done.append(common | {"method": name, "accuracy": round(right, 4)})
    return done


def table(rows: list[Row]) -> str:
    """Means over data sets and seeds, and what each way adds."""
    lines = ["| pool | shots | support alone | even | estimated |", "|---|---|---|---|---|"]
    for kind, shots in dict.fromkeys((row["pool"], row["shots"]) for row in rows):
        means = {
            name: 100 * float(np.mean([float(str(row["accuracy"])) for row in rows
                  if (row["pool"], row["shots"], row["method"]) == (kind, shots, name)]))
            for name in ("support alone", "even", "estimated")
        }  # fmt: skip
        base = means.pop("support alone")
        cells = " | ".join(f"{value - base:+.1f}" for value in means.values())
        lines.append(f"| {kind} | {shots} | {base:.1f} | {cells} |")
    return "\n".join(lines)


def _opened(bundle: Bundle, data: Path, cache: Path, part: str) -> Pool:
    if part == "test":  # a hundred of a class, as in the benchmark
        return load_pool(bundle, data, cache, shots=1_000_000, seeds=1, test_per_class=100)
    return load_training_pool(bundle, data, cache)


def main() -> None:
    """Measure what is not in the file, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--part", choices=("validation", "test"), default="validation")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 16])
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=list(POOLS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ladders", action="store_true", help="rows of the ladder alone, too")
    parser.add_argument("--csv", type=Path, required=True)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    pools = [
        _opened(bundle, data, options.cache / data.stem, options.part) for data in options.data
    ]
    rows: list[Row] = result_rows.load(options.csv)
    done = {tuple(str(row[name]) for name in _FIELDS[:5]) for row in rows}
    for kind in options.pools:
        for shots in options.shots:
            for place, pool in enumerate(pools):
                for seed in range(options.seeds):
                    if (options.part, pool.name, str(shots), str(seed), kind) not in done:
                        rows += measure(pools, place, shots, seed, kind, options.part)
                        if options.ladders and kind != "strangers":
                            rows += ladders(pool, shots, seed, kind, options.part)
            result_rows.save(options.csv, rows, _FIELDS)
    print(table([row for row in rows if row["part"] == options.part]))


if __name__ == "__main__":
    main()
