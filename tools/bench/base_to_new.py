#!/usr/bin/env python
"""Base to new: train on half of the classes, name the other half by its names alone.

    tools/bench/base_to_new.py --bundle bundle --data pictures.zip --out base-to-new
    tools/bench/base_to_new.py --bundle bundle --ladders rows --data pictures.zip --out base-to-new
    tools/bench/base_to_new.py --table base-to-new/results.csv

As CoCoOp (arXiv:2203.05557) and MaPLe (arXiv:2210.03117) report it: the first half of the classes
in the order of their folders' names is the base, one more where they are odd; its test pictures are
judged among base names, those of the other half among the others' names, which no training saw, and
the two accuracies are joined by their harmonic mean. Beside it stand both among all names at once
(`base_all`, `new_all`), as a box meets them that was taught half of what it sees.

Rows are zero-shot, the bundle's own ladder, the same with its head (which speaks for the base
alone; `head added`: as if it spoke for all), and further ladders as in fewshot.py. Writes
results.csv after every task; run it again and it goes on where it stopped. `--validation` judges on
training-side pictures outside the support set of the base, and on those of the new classes, for
choosing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import Profile
from edgeladder.runtime.logits import Activations as Cached
from edgeladder.runtime.logits import ClassLogits
from tools.bench import result_rows
from tools.bench.fewshot import Ladders, open_ladders
from tools.bench.figures import mean_and_error
from tools.bench.ladder_row import encode, trained_ladder, tuned_classes
from tools.bench.product_heads import joined, support_inputs
from tools.bench.result_rows import Row
from tools.bench.task import Activations, Pool, Task, load_pool
from tools.bench.variants import DEVICE

Array = np.ndarray
_KEY = ["dataset", "shots", "seed", "method"]
_SHARES = ["base", "new", "harmonic", "base_all", "new_all"]
FIELDS = ["model", *_KEY, *_SHARES, "seconds"]
_CHUNK = 256


@dataclass(frozen=True)
class Halves:
    """A data set cut in two by its classes."""

    whole: Pool
    base: Pool
    new: Pool
    count: int  # base classes

    @classmethod
    def of(cls, pool: Pool) -> Halves:
        """The first half of the classes by name, one more where they are odd, and the others."""
        classes = len(pool.text.labels)
        count = -(-classes // 2)
        return cls(pool, pool.of_classes(0, count), pool.of_classes(count, classes), count)

    def judged(self, task: Task, *, validation: bool) -> tuple[Activations, Activations]:
        """Pictures of the base and of the new classes, labels among all names."""
        base, new = self.base.test, self.new.test
        if validation:
            outside = np.setdiff1d(np.arange(len(self.base.train.labels)), task.rows)
            base, new = self.base.train.part(outside), self.new.train
        return base, replace(new, labels=new.labels + self.count)


@dataclass(frozen=True)
class Judge:
    """What test pictures of both halves are, and how logits among all names are counted."""

    pictures: tuple[Activations, Activations]
    count: int  # base classes, the first of all names

    def shares(self, own: tuple[Array, Array], everything: tuple[Array, Array]) -> Row:
        """Accuracies from logits (n, C) of either half's pictures.

        Args:
            own: of which each half is judged among its own names.
            everything: judged among all names.
        """
        labels = [part.labels for part in self.pictures]
        base = float((own[0][:, : self.count].argmax(1) == labels[0]).mean())
        new = float((own[1][:, self.count :].argmax(1) == labels[1] - self.count).mean())
        among = [float((x.argmax(1) == y).mean()) for x, y in zip(everything, labels, strict=True)]
        found = dict(zip(_SHARES, (base, new, harmonic(base, new), *among), strict=True))
        return {name: round(value, 6) for name, value in found.items()}


def harmonic(base: float, new: float) -> float:
    """The harmonic mean of two accuracies; 0 where either is."""
    return 2 * base * new / (base + new) if base and new else 0.0


def run_task(
    halves: Halves, task: Task, ladders: Ladders, done: set[tuple[str, ...]], validation: bool
) -> Iterator[Row]:
    """A row for each method that is not done."""
    judge = Judge(halves.judged(task, validation=validation), halves.count)
    formula = ClassLogits.of(task.bundle.manifest.model)
    text = halves.whole.text.embedding
    plain_base, plain_new = (formula.similarity(p.embedding, text) for p in judge.pictures)
    zero_shot = plain_base, plain_new

    def missing(method: str) -> bool:
        return (task.name, str(task.shots), str(task.seed), method) not in done

    def row(method: str, shares: Row, started: float) -> Row:
        key = dict(zip(_KEY, (task.name, task.shots, task.seed, method), strict=True))
        model = task.bundle.manifest.model.name
        seconds = round(time.perf_counter() - started, 3)
        return {"model": model, **key, **shares, "seconds": seconds}

    started = time.perf_counter()
    if missing("zero-shot"):
        yield row("zero-shot", judge.shares(zero_shot, zero_shot), started)
    for name, (bundle, profile) in ladders.items():
        has_head = profile.head.kind != "none"
        alone = f"{name}: ladder alone" if has_head else name
        beside = [name, f"{name}: head added"] if has_head else []
        if not any(missing(method) for method in (alone, *beside)):
            continue
        started = time.perf_counter()
        tuned = ladder_logits(halves, task, bundle, profile, judge.pictures)
        if missing(alone):
            yield row(alone, judge.shares(tuned, tuned), started)
        if any(missing(method) for method in beside):
            found = with_head(task, profile, judge, tuned, zero_shot)
            rows = zip(beside, found, strict=True)
            yield from (row(method, shares, started) for method, shares in rows)


def ladder_logits(
    halves: Halves,
    task: Task,
    bundle: Bundle,
    profile: Profile,
    pictures: tuple[Activations, Activations],
) -> tuple[Array, Array]:
    """Train on the base; logits of both halves' pictures among all names, (n, C) each."""
    wanted = bundle.manifest.ladder.image_inputs
    with trained_ladder(task, bundle, profile) as (engine, _):
        sides = (halves.base, halves.new)
        text = np.concatenate([tuned_classes(engine, side.reader(bundle)) for side in sides])
        base, new = (encode(engine, task, part, text, wanted) for part in pictures)
        return base, new


def with_head(
    task: Task,
    profile: Profile,
    judge: Judge,
    tuned: tuple[Array, Array],
    zero_shot: tuple[Array, Array],
) -> tuple[Row, Row]:
    """The ladder beside the head of the base classes.

    Returns:
        By the product's own formula, in which the head orders its own classes and no others; and
        among all names with the head's logits added as they are, which is why it does.
    """
    head, *weights = joined(profile.head, support_inputs(task))
    formula = ClassLogits.of(task.bundle.manifest.model).with_head(head, *weights)
    among = replace(formula, head_columns=tuple(range(judge.count)))

    def told(which: ClassLogits, side: int, columns: slice) -> Array:
        part, parts = judge.pictures[side], []
        for start in range(0, len(part.labels), _CHUNK):
            rows = slice(start, start + _CHUNK)
            taps = [np.asarray(tap[:, :, rows], np.float32) for tap in part.taps]
            extra = {name: values[rows] for name, values in part.extra.items()}
            cached = Cached(taps, part.embedding[rows], extra)
            logits = tuned[side][rows, columns], zero_shot[side][rows, columns]
            parts.append(which.joined(head, *logits, cached))
        return np.concatenate(parts)

    base, everything = slice(0, judge.count), slice(None)
    own = told(formula, 0, base), tuned[1]  # no new name is the head's
    added = [logits.copy() for logits in tuned]
    for side, logits in enumerate(added):
        logits[:, base] = told(formula, side, base)
    return (
        judge.shares(own, (told(among, 0, everything), told(among, 1, everything))),
        judge.shares(own, (added[0], added[1])),
    )


def table(rows: list[Row]) -> str:
    """Markdown: per model and shots, means over data sets and the standard error of the seeds."""
    lines = []
    groups = dict.fromkeys((str(r["model"]), str(r["shots"])) for r in rows)
    for model, shots in groups:
        part = [r for r in rows if (str(r["model"]), str(r["shots"])) == (model, shots)]
        sets = list(dict.fromkeys(str(r["dataset"]) for r in part))
        lines += ["", f"### {model}, {shots} shots: mean of {', '.join(sets)}", ""]
        lines += ["| method | " + " | ".join(_SHARES) + " |", "|---" * (len(_SHARES) + 1) + "|"]
        for method in dict.fromkeys(str(r["method"]) for r in part):
            own = [r for r in part if r["method"] == method]
            missing = "" if {str(r["dataset"]) for r in own} == set(sets) else " (not all sets)"
            cells = [_cell(own, share) for share in _SHARES]
            lines.append(f"| {method}{missing} | " + " | ".join(cells) + " |")
    return "\n".join(lines[1:])


def _cell(rows: list[Row], share: str) -> str:
    sets: dict[str, list[float]] = {}
    for row in rows:
        if str(row[share]):
            sets.setdefault(str(row["dataset"]), []).append(100 * float(str(row[share])))
    if not sets:
        return ""
    mean, error = mean_and_error(sets)
    return f"{mean:.1f} ± {error:.1f}"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--table", type=Path, nargs="+", help="print the tables of results.csv")
    parser.add_argument("--bundle", type=Path, help="whose backbone and default")
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--ladder", action="append", default=[], metavar="NAME=BUNDLE[,A.B=C..]")
    parser.add_argument("--ladders", type=Path, help="a folder of bundles, each a ladder to train")
    parser.add_argument("--rows", nargs="+", help="of --ladders these alone")
    parser.add_argument("--device-rows", nargs="*", choices=list(DEVICE))
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--only-ladders", action="store_true", help="the further ladders alone")
    parser.add_argument("--validation", action="store_true", help="judge on training-side pictures")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path, default=Path("base-to-new"))
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--test-per-class", type=int, default=100)
    parser.add_argument(
        "--pool-shots", type=int, help="pictures a class and seed to cache, for --validation"
    )
    return parser.parse_args()


def main() -> None:
    """Run what is not done; each task's results are on disk when it ends."""
    arguments = parse_arguments()
    if arguments.table:
        print(table([row for path in arguments.table for row in result_rows.load(path)]))
        return
    bundle = Bundle.open(arguments.bundle)
    ladders = open_ladders(arguments, bundle)
    if arguments.rows:
        ladders = {n: v for n, v in ladders.items() if n in ("default", *arguments.rows)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "results.csv"
    rows = result_rows.load(path)
    halves = [
        Halves.of(
            load_pool(
                bundle,
                data,
                arguments.cache,
                shots=arguments.pool_shots or max(arguments.shots),
                seeds=arguments.seeds,
                test_per_class=arguments.test_per_class,
            )
        )
        for data in arguments.data
    ]
    for seed in range(arguments.seeds):  # outermost: what is there at any time is balanced
        for part in halves:
            for shots in arguments.shots:
                done = {tuple(str(row[key]) for key in _KEY) for row in rows}
                task = part.base.task(shots, seed)
                rows += run_task(part, task, ladders, done, arguments.validation)
                result_rows.save(path, rows, FIELDS)
            print(f"{part.whole.name}, seed {seed}: done", file=sys.stderr, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
