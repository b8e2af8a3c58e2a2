#!/usr/bin/env python
"""Learning curves of `edgeladder suggest` against random draws: labels per class not known before.

    python -m tools.bench.suggest_curves --bundle edgeladder/_nano/bundle --cache cache \
        --data flowers5.zip --data rsscn7.zip --data clothing.zip --data cifar10.zip \
        --labels 1 2 4 --seeds 5 --out suggest-curves.csv

Each seed parts a data set's pictures into a pool (three in five) and test pictures. A way chooses
`labels x classes` pictures of the pool without knowing any label; a person labels them; the default
head without a ladder (blend, beside zero-shot) learns from them, of the classes that were found. A
class that was not found is never predicted. `suggest` covers; `random, ..` draws the same number;
`uncertain` has half of them covered, and the other half chosen by the head that learnt from those.
What the file has already stays.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeladder.core.bundle import Bundle  # noqa: E402
from edgeladder.runtime.heads.closed_form import Head, fit_head  # noqa: E402
from edgeladder.runtime.logits import softmax  # noqa: E402
from edgeladder.runtime.review.suggest import choose, reduced  # noqa: E402
from tools.bench import result_rows  # noqa: E402
from tools.bench.review_pool import Pool, load  # noqa: E402

Array = np.ndarray
FIELDS = ("dataset", "labels", "seed", "way", "accuracy", "classes_found")
DRAWS = 3  # random draws a seed
TEST_SHARE = 0.4


class Learner:
    """A head on labelled pictures, of the classes that they show."""

    def __init__(self, pool: Pool, features: list[Array], rows: Array):
        self.pool, self.features = pool, features
        self.found, own = np.unique(pool.labels[rows], return_inverse=True)
        self.head: Head | None = None
        if len(self.found) > 1:
            zero_shot = pool.zero_shot[np.ix_(rows, self.found)]
            given = [tap[rows] for tap in features]
            self.head = fit_head("blend", given, own, zero_shot, projected=True)

    def logits(self, rows: Array) -> Array:
        """(n, found classes)."""
        if self.head is None:
            return np.zeros((len(rows), 1))
        zero_shot = self.pool.zero_shot[np.ix_(rows, self.found)]
        return self.head.logits([tap[rows] for tap in self.features], zero_shot)

    def accuracy(self, rows: Array) -> float:
        """Share of test pictures that are named rightly."""
        said = self.found[self.logits(rows).argmax(axis=1)]
        return float((said == self.pool.labels[rows]).mean())

    def sure(self, rows: Array) -> Array:
        """Margin between the two most probable classes (n,)."""
        shares = np.sort(softmax(self.logits(rows)), axis=1)
        return np.asarray(shares[:, -1] - (shares[:, -2] if shares.shape[1] > 1 else 0))


def ways(pool: Pool, features: list[Array], rows: Array, count: int, seed: int) -> dict[str, Array]:
    """Rows that each way has labelled; `rows`: the pool's."""
    generator = np.random.default_rng([seed, count])
    compared = reduced(lambda part: pool.features[rows[part]], len(rows), pool.features.shape[1])
    none = compared[:0]
    found = {
        f"random, {n}": rows[generator.choice(len(rows), count, replace=False)]
        for n in range(DRAWS)
    }
    found["suggest"] = rows[choose(compared, none, count, seed=seed).rows]
    first = choose(compared, none, count // 2, seed=seed).rows
    left = np.setdiff1d(np.arange(len(rows)), first)
    sure = Learner(pool, features, rows[first]).sure(rows[left])
    more = choose(compared[left], compared[first], count - len(first), sure=sure, seed=seed).rows
    found["uncertain"] = rows[np.concatenate([first, left[more]])]
    return found


def table(rows: list[result_rows.Row]) -> str:
    """Accuracies, and the difference from random draws in points, a line a data set."""
    groups: dict[tuple[int, str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        way = str(row["way"]).split(",")[0]
        values = float(str(row["accuracy"])), float(str(row["classes_found"]))
        groups[int(str(row["labels"])), str(row["dataset"]), way].append(values)
    lines = [
        "| labels a class | data set | random | suggest | half uncertain | classes found |",
        "|---|---|---|---|---|---|",
    ]
    names = sorted({name for _, name, _ in groups})
    for labels in sorted({labels for labels, _, _ in groups}):
        told = np.array(
            [
                [np.mean(groups[labels, name, way], axis=0) for way in ("random", "suggest",
                                                                       "uncertain")]
                for name in names
            ]
        )  # fmt: skip
        for name, part in [*zip(names, told, strict=True), ("mean", told.mean(axis=0))]:
            plain, chosen, unsure = 100 * part[:, 0]
            seen = " / ".join(f"{100 * share:.0f} %" for share in part[:2, 1])
            lines.append(
                f"| {labels} | {name} | {plain:.1f} | {chosen:.1f} ({chosen - plain:+.1f}) "
                f"| {unsure:.1f} ({unsure - plain:+.1f}) | {seen} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--per-class", type=int, default=100)
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    bundle = Bundle.open(given.bundle)
    rows = result_rows.load(given.out)
    done = {(str(r["dataset"]), int(str(r["labels"])), int(str(r["seed"]))) for r in rows}
    for data in given.data:
        wanted = [(n, k) for k in range(given.seeds) for n in given.labels]
        wanted = [(n, k) for n, k in wanted if (data.stem, n, k) not in done]
        if not wanted:
            continue
        pool = load(bundle, data, given.cache, given.per_class)
        features = pool.cached.activations(np.arange(len(pool.labels))).features()
        for labels, seed in wanted:
            order = np.random.default_rng(seed).permutation(len(pool.labels))
            cut = round(TEST_SHARE * len(order))
            test, some = order[:cut], order[cut:]
            for way, chosen in ways(pool, features, some, labels * pool.classes, seed).items():
                learner = Learner(pool, features, chosen)
                values = {
                    "accuracy": round(learner.accuracy(test), 4),
                    "classes_found": round(len(learner.found) / pool.classes, 4),
                }
                told = {"dataset": data.stem, "labels": labels, "seed": seed, "way": way}
                rows.append({**told, **values})
            result_rows.save(given.out, rows, FIELDS)
    print(table(rows))


if __name__ == "__main__":
    main()
