#!/usr/bin/env python
"""What a head that is fitted on a sample loses, and what fitting it on all pictures gives back.

    python -m tools.bench.head_sizes --bundle edgeladder/_nano/bundle --data clothing.zip \
        --per-class 64 100 128 1000000 --csv head-sizes.csv

Training pictures alone: a fifth of each class, at most 60, is held out and judges; so many of the
others a class are the support set. Rows: the blend fitted on a class-balanced sample of 600, the
same with all pictures in the sample's coordinates, and both parts of either.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from edgeladder.budget.policy import MOST_HEAD_PICTURES
from edgeladder.core.bundle import Bundle
from edgeladder.runtime.heads.closed_form import Blend, Head, fit_head
from edgeladder.runtime.heads.kernel import balanced
from edgeladder.runtime.heads.refit import refit
from edgeladder.runtime.logits import ClassLogits
from tools.bench import result_rows
from tools.bench.result_rows import Row
from tools.bench.task import Activations, Pool, load_training_pool

_FIELDS = ["dataset", "per_class", "seed", "pictures", "method", "accuracy"]
_HELD, _SHARE = 60, 5
_WINDOW = 64


def divide(labels: np.ndarray, per_class: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the support set and of the pictures that judge."""
    chance, support, held = np.random.default_rng(seed), [], []
    for label in np.unique(labels):
        rows = chance.permutation(np.flatnonzero(labels == label))
        out = min(_HELD, len(rows) // _SHARE)
        held.append(rows[:out])
        support.append(rows[out : out + per_class])
    return np.concatenate(support), np.concatenate(held)


def measure(pool: Pool, per_class: int, seed: int) -> list[Row]:
    """Rows of one support set; none where a sample of it is all of it."""
    formula, text = ClassLogits.of(pool.bundle.manifest.model), pool.text.embedding

    def given(rows: Activations) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        return rows.features(), rows.labels, formula.similarity(rows.embedding, text)

    support, held = divide(pool.train.labels, per_class, seed)
    if len(support) <= MOST_HEAD_PICTURES:
        return []
    sampled = support[balanced(pool.train.labels[support], MOST_HEAD_PICTURES, seed)]
    sample = given(pool.train.part(sampled))
    small = fit_head("blend", *sample, seed=seed, projected=bool(pool.train.extra))
    windows = (
        given(pool.train.part(support[start : start + _WINDOW]))
        for start in range(0, len(support), _WINDOW)
    )
    heads: dict[str, Head] = {"sample": small, "all": refit(small, sample, windows)}
    for name, head in list(heads.items()):
        assert isinstance(head, Blend)
        heads |= {f"{name}: kernel": head.heads[0], f"{name}: discriminant": head.heads[1]}
    features, labels, zero_shot = given(pool.train.part(held))
    common = {"dataset": pool.name, "per_class": per_class, "seed": seed, "pictures": len(support)}
    return [
        common
        | {
            "method": name,
            "accuracy": round(
                float((head.logits(features, zero_shot).argmax(axis=1) == labels).mean()), 4
            ),
        }
        for name, head in heads.items()
    ]


def main() -> None:
    """Measure, write the file and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--per-class", type=int, nargs="+", default=[64, 100, 128, 1_000_000])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--csv", type=Path, required=True)
    options = parser.parse_args()
    rows: list[Row] = []
    for data in options.data:
        pool = load_training_pool(Bundle.open(options.bundle), data, options.cache)
        for per_class in options.per_class:
            for seed in range(options.seeds):
                found = measure(pool, per_class, seed)
                # a class that has no more pictures than that was measured whole before
                known = {(row["dataset"], row["pictures"], row["seed"]) for row in rows}
                rows += [r for r in found if (r["dataset"], r["pictures"], r["seed"]) not in known]
            result_rows.save(options.csv, rows, _FIELDS)
    for row in rows:
        print(*(row[name] for name in _FIELDS))


if __name__ == "__main__":
    main()
