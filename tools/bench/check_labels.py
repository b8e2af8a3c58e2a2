#!/usr/bin/env python
"""Which changed labels `edgeladder check` finds: a tenth of the labels is changed at random.

    python -m tools.bench.check_labels --bundle edgeladder/_nano/bundle --cache cache \
        --data flowers5.zip --data rsscn7.zip --data clothing.zip --data cifar10.zip \
        --shots 4 16 64 --seeds 5 --out check-labels.csv

Each task draws `--shots` pictures of every class, changes a tenth of the labels to another class
each, and ranks all pictures by the held-out probability of their label, least first. Of k wrong
ones: `auroc` of the ranking, `precision` among the first k, `recall_twice` of them among the first
2k, as a person goes through the list. What the file has already stays.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeladder.core.bundle import Bundle  # noqa: E402
from edgeladder.runtime.review.held_out import held_out_labels  # noqa: E402
from tools.bench import result_rows  # noqa: E402
from tools.bench.review_pool import Pool, load  # noqa: E402

Array = np.ndarray
FIELDS = (
    "dataset", "shots", "seed", "pictures", "wrong", "auroc", "precision", "recall_twice",
    "cpu_seconds",
)  # fmt: skip
WRONG = 0.1  # share of the labels that is changed
MOST = 1000  # pictures of a sample, as the command takes where there is room


def auroc(scores: Array, wrong: Array) -> float:
    """Area under the ROC curve: how often a wrong one scores above a right one."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    count = int(wrong.sum())
    above = ranks[wrong].sum() - count * (count + 1) / 2
    return float(above / (count * (len(scores) - count)))


def task(pool: Pool, shots: int, seed: int) -> dict[str, object]:
    """One row of results."""
    generator = np.random.default_rng(seed)
    rows = np.concatenate(
        [
            generator.choice(np.flatnonzero(pool.labels == c), shots, replace=False)
            for c in range(pool.classes)
        ]
    )
    given = pool.labels[rows].copy()
    count = round(WRONG * len(rows))
    changed = generator.choice(len(rows), count, replace=False)
    steps = generator.integers(1, pool.classes, count)
    given[changed] = (given[changed] + steps) % pool.classes
    wrong = given != pool.labels[rows]
    started = time.process_time()
    found = held_out_labels(
        lambda part: pool.features[rows[part]],
        lambda part: pool.zero_shot[rows[part]],
        given,
        pool.classes,
        most=MOST,
    )
    seconds = time.process_time() - started
    scores = -np.nan_to_num(found.given, nan=1.0)
    order = np.argsort(-scores, kind="stable")
    return {
        "shots": shots,
        "seed": seed,
        "pictures": len(rows),
        "wrong": count,
        "auroc": round(auroc(scores, wrong), 4),
        "precision": round(float(wrong[order[:count]].mean()), 4),
        "recall_twice": round(float(wrong[order[: 2 * count]].sum() / count), 4),
        "cpu_seconds": round(seconds, 2),
    }


def table(rows: list[result_rows.Row]) -> str:
    """Means over the seeds: a line a data set and number of pictures, and over the data sets."""
    groups: dict[tuple[int, str], list[result_rows.Row]] = defaultdict(list)
    for row in rows:
        groups[int(str(row["shots"])), str(row["dataset"])].append(row)
    lines = [
        "| pictures a class | data set | AUROC | wrong of the first k | found in the first 2k |",
        "|---|---|---|---|---|",
    ]
    keys = ("auroc", "precision", "recall_twice")
    for shots in sorted({shots for shots, _ in groups}):
        means = {}
        for (of, name), part in groups.items():
            if of == shots:
                means[name] = [np.mean([float(str(row[key])) for row in part]) for key in keys]
        for name, values in [*means.items(), ("mean", list(np.mean(list(means.values()), axis=0)))]:
            a, precision, recall = values
            shown = f"{a:.3f} | {100 * precision:.1f} % | {100 * recall:.1f} %"
            lines.append(f"| {shots} | {name} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    rows = result_rows.load(given.out)
    done = {(str(r["dataset"]), int(str(r["shots"])), int(str(r["seed"]))) for r in rows}
    for data in given.data:
        wanted = [(s, k) for s in given.shots for k in range(given.seeds)]
        wanted = [(s, k) for s, k in wanted if (data.stem, s, k) not in done]
        if not wanted:
            continue
        pool = load(bundle, data, given.cache, given.per_class)
        for shots, seed in wanted:
            rows.append({"dataset": data.stem, **task(pool, shots, seed)})
            result_rows.save(given.out, rows, FIELDS)
    print(table(rows))


if __name__ == "__main__":
    main()
