#!/usr/bin/env python
"""Do unlabelled pictures teach the closed-form head? A trial on training pictures, no command yet.

    python -m tools.bench.unlabelled_trial --bundle edgeladder/_nano/bundle --data clothing.zip \
        --data rsscn7.zip --csv unlabelled.csv

Of each class some training pictures judge, some are the support set, some others the pool, whose
labels nobody sees. A method of two stages, from the support set's head on:

1. Soft labels of the pool: the head's probabilities, scaled in turns by class and by picture
   (Sinkhorn and Knopp 1967) to the proportions of classes; kernel and discriminant are fitted on
   support and pool with them, a picture of the pool counting half by the square of its certainty;
   four rounds.
2. The surest 60 % of each class become hard labels, and the head is fitted anew on them and the
   support set, so that its taps, bandwidth and ridge are chosen by many more pictures.

`even` takes all classes to be equally common. `estimated` has the most likely proportions of the
pool under a Dirichlet prior around even ones, found once from the support set's head (found anew
in every round they run away), and leaves out what is farther from the support set than nearly all
of the set is from itself. Pools: even; skewed ten to one; two fifths of other data sets' pictures;
ten a class.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.runtime.heads.closed_form import Blend, Gda, beside, fit_head
from edgeladder.runtime.heads.discriminant import rule_of_moments
from edgeladder.runtime.heads.kernel import Kernel, centred, gram
from edgeladder.runtime.logits import ClassLogits, softmax
from tools.bench import result_rows
from tools.bench.result_rows import Row
from tools.bench.task import Activations, Pool, load_training_pool

Array = np.ndarray
POOLS = ("even", "skewed", "strangers", "few")
_FIELDS = ["dataset", "shots", "seed", "pool", "method", "accuracy"]
_JUDGES, _MOST_SHOTS, _POOL = 60, 16, 80
_ROUNDS, _WEIGHT, _SUREST = 4, 0.5, 0.6


@dataclass
class Pictures:
    """What a head reads of some pictures."""

    features: list[Array]  # per tap (n, W)
    zero_shot: Array  # (n, C)

    def rows(self, rows: Array) -> Pictures:
        """Some of them."""
        return Pictures([tap[rows] for tap in self.features], self.zero_shot[rows])

    def and_(self, others: Pictures) -> Pictures:
        """Both, one after the other."""
        taps = zip(self.features, others.features, strict=True)
        return Pictures(
            [np.concatenate(pair) for pair in taps],
            np.concatenate([self.zero_shot, others.zero_shot]),
        )


def scaled(logits: Array, proportions: Array, rounds: int = 60) -> Array:
    """Probabilities (n, C) whose columns sum to `n * proportions` and whose rows to one."""
    shares = softmax(logits)
    for _ in range(rounds):
        shares *= proportions * len(shares) / np.maximum(shares.sum(axis=0), 1e-9)
        shares /= shares.sum(axis=1, keepdims=True)
    return shares


def likely_proportions(chances: Array, strength: float, rounds: int = 50) -> Array:
    """Of the pool, by expectation maximisation; `strength` n / C pictures a class are added."""
    count, classes = chances.shape
    found = np.full(classes, 1 / classes)
    for _ in range(rounds):
        shares = chances * found
        shares /= shares.sum(axis=1, keepdims=True)
        found = (shares.sum(axis=0) + strength * count / classes) / (count * (1 + strength))
    return np.asarray(found)


class Trial:
    """A support set and a pool, in coordinates that make a round cheap."""

    def __init__(self, support: Pictures, labels: Array, pool: Pictures):
        self.support, self.labels, self.pool = support, labels, pool
        self.classes = support.zero_shot.shape[1]
        head = fit_head("blend", support.features, labels, support.zero_shot, projected=True)
        assert isinstance(head, Blend)
        self.head = head
        kernel, rule = head.heads
        assert isinstance(kernel, Kernel) and isinstance(rule, Gda)
        self.kernel, self.rule = kernel, rule
        both = support.and_(pool)
        rows = beside(both.features, rule.reads)
        values, vectors = np.linalg.eigh(rows @ rows.T)
        kept = values > 1e-7 * values[-1]
        self.rows = vectors[:, kept] * np.sqrt(values[kept])  # as far apart as `rows`
        near = rows @ rows[: len(labels)].T
        near[np.arange(len(labels)), np.arange(len(labels))] = -1.0  # itself
        nearest = np.sort(near, axis=1)[:, -min(3, max(1, len(labels) - 1)) :].mean(axis=1)
        edge = min(np.quantile(nearest[: len(labels)], 0.05), np.quantile(nearest, 0.9))
        self.familiar = nearest[len(labels) :] >= edge
        units = (
            (rate, centred(both.features[tap].astype(np.float32), kernel.centres[tap]))
            for tap, rate in kernel.rates.items()
        )
        self.gram = gram((len(rows),) * 2, ((rate, unit, unit) for rate, unit in units))
        self.base = softmax(kernel.choice.base * both.zero_shot)

    def soft(self, shares: Array, weights: Array) -> Array:
        """Logits of the pool by both parts, fitted on support and pool with soft labels."""
        known = len(self.labels)
        targets = np.concatenate([np.eye(self.classes)[self.labels], shares])
        counts = np.concatenate([np.ones(known), weights])
        members = targets * counts[:, None]
        matrix, bias = rule_of_moments(
            self.rows.T @ (self.rows * counts[:, None]),
            members.T @ self.rows,
            np.maximum(members.sum(axis=0), 1e-9),
            0.0,
        )
        rule, choice, plain = self.rule, self.kernel.choice, self.pool.zero_shot
        first = rule.prior * plain + rule.weight * (self.rows[known:] @ matrix + bias)
        ridge = np.diag(choice.ridge / np.maximum(counts, 1e-3))
        alpha = np.linalg.solve(self.gram + ridge, targets - self.base)
        second = choice.prior * plain + choice.temperature * (self.gram[known:] @ alpha)
        return np.asarray((first + second) / 2)

    def taught(self, proportions: Array, *, familiar_alone: bool) -> Blend:
        """The head that support and pool teach."""
        logits = self.head.logits(self.pool.features, self.pool.zero_shot)
        counted = self.familiar if familiar_alone else np.ones(len(logits), bool)
        shares = scaled(logits, proportions)
        for _ in range(_ROUNDS):
            spread = -(shares * np.log(shares + 1e-12)).sum(axis=1) / np.log(self.classes)
            weights = np.maximum(_WEIGHT * (1 - spread) ** 2 * counted, 1e-3)
            logits = self.soft(shares, weights)
            shares = scaled(logits, proportions)
        rows = np.flatnonzero(surest(shares) & counted)
        whole = self.support.and_(self.pool.rows(rows))
        labels = np.concatenate([self.labels, shares.argmax(axis=1)[rows]])
        head = fit_head("blend", whole.features, labels, whole.zero_shot, projected=True)
        assert isinstance(head, Blend)
        return head


def surest(shares: Array) -> Array:
    """Which pictures (n,) are among the surest of the class that they are taken for."""
    taken, kept = shares.argmax(axis=1), np.zeros(len(shares), bool)
    for label in range(shares.shape[1]):
        rows = np.flatnonzero(taken == label)
        order = rows[np.argsort(-shares[rows, label])]
        kept[order[: round(_SUREST * len(rows))]] = True
    return kept


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


def given(pool: Pool, pictures: Activations) -> Pictures:
    """What a head of the pool's classes reads of any pictures."""
    formula = ClassLogits.of(pool.bundle.manifest.model)
    return Pictures(
        pictures.features(), formula.similarity(pictures.embedding, pool.text.embedding)
    )


def measure(pools: list[Pool], place: int, shots: int, seed: int, kind: str) -> list[Row]:
    """Accuracies on the judges: without the pool, and with it in each way."""
    mine = pools[place]
    rows = divide(mine.train.labels, shots, seed, kind)
    unlabelled = given(mine, mine.train.part(rows.pool))
    if kind == "strangers":
        others = [pool for number, pool in enumerate(pools) if number != place]
        for other in others:
            count = 2 * len(rows.pool) // (3 * len(others))
            chosen = np.random.default_rng(seed).permutation(len(other.train.labels))[:count]
            unlabelled = unlabelled.and_(given(mine, other.train.part(chosen)))
    support = mine.train.part(rows.support)
    trial = Trial(given(mine, support), support.labels, unlabelled)
    even = np.full(trial.classes, 1 / trial.classes)
    chances = softmax(trial.head.logits(unlabelled.features, unlabelled.zero_shot))
    heads = {
        "support alone": trial.head,
        "even": trial.taught(even, familiar_alone=False),
        "estimated": trial.taught(likely_proportions(chances, 4.0), familiar_alone=True),
    }
    judges = mine.train.part(rows.judges)
    asked = given(mine, judges)
    common = {"dataset": mine.name, "shots": shots, "seed": seed, "pool": kind}
    found: list[Row] = []
    for name, head in heads.items():
        right = head.logits(asked.features, asked.zero_shot).argmax(axis=1) == judges.labels
        found.append(common | {"method": name, "accuracy": round(float(right.mean()), 4)})
    return found


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


def main() -> None:
    """Measure what is not in the file, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 16])
    parser.add_argument("--pools", nargs="+", choices=POOLS, default=list(POOLS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--csv", type=Path, required=True)
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle)
    pools = [load_training_pool(bundle, data, options.cache / data.stem) for data in options.data]
    rows: list[Row] = result_rows.load(options.csv)
    done = {tuple(str(row[name]) for name in _FIELDS[:4]) for row in rows}
    for kind in options.pools:
        for shots in options.shots:
            for place, pool in enumerate(pools):
                for seed in range(options.seeds):
                    if (pool.name, str(shots), str(seed), kind) not in done:
                        rows += measure(pools, place, shots, seed, kind)
            result_rows.save(options.csv, rows, _FIELDS)
    print(table(rows))


if __name__ == "__main__":
    main()
