#!/usr/bin/env python
"""Whether a run's answers can be acted on: calibration error, and pictures of no class told apart.

    tools/bench/answers.py --bundle edgeladder/_nano/bundle --data flowers5.zip --data rsscn7.zip \
        --data clothing.zip --data cifar10.zip --out answers

Per task (data set, shots, seed) a ladder is trained and the profile's head fitted as `edgeladder
train` does; their logits are kept in OUT, one file a task, so that it goes on where it stopped.
Then `answers.csv`: the expected calibration error (15 bins) and the negative log-likelihood at
temperature 1 and at the run's; the AUROC of `known` against the other data sets' pictures (far) and
against a class of the same set that was left out of the support set, each in turn (near); which
share of known pictures is refused, and of the other sets' caught. Validation pictures, which no
support set holds, chose the constants of `runtime/calibration.py`; test pictures judge.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeladder.core.bundle import Bundle  # noqa: E402
from edgeladder.runtime.calibration import SUM_SPREAD, Calibration, from_held_out, from_spread  # noqa: E402
from edgeladder.runtime.heads.closed_form import head_arrays, head_from  # noqa: E402
from edgeladder.runtime.heads.kernel import normalise  # noqa: E402
from edgeladder.runtime.known import (  # noqa: E402
    NEIGHBOURS,
    choose_threshold,
    left_out_scores,
    nearest,
)
from tools.bench import result_rows  # noqa: E402
from tools.bench.ladder_row import encode, trained_ladder, tuned_classes  # noqa: E402
from tools.bench.product_heads import joined, support_inputs  # noqa: E402
from tools.bench.result_rows import Row  # noqa: E402
from tools.bench.task import Pool, load_pool  # noqa: E402
from tools.bench.validate import PARTS, hold_out  # noqa: E402

Array = np.ndarray
Kept = dict[str, Array]
_FIELDS = [
    "dataset", "shots", "seed", "part", "accuracy", "error_before", "error", "loss_before", "loss",
    "temperature", "far", "near", "refused", "caught",
]  # fmt: skip


def collect(pool: Pool, shots: int, seed: int) -> Kept:
    """Train one task; logits of support and test pictures by ladder, zero-shot and head."""
    task, bundle = pool.task(shots, seed), pool.bundle
    profile, support = bundle.manifest.profile, task.support
    wanted = bundle.manifest.ladder.image_inputs
    with trained_ladder(task, bundle, profile) as (engine, _):
        text = tuned_classes(engine, task.reader(bundle))
        test, own = (encode(engine, task, side, text, wanted) for side in (task.test, support))
    zero_shot = task.zero_shot(support.embedding), task.zero_shot(task.test.embedding)
    assert profile.head.kind != "none", "the profile needs a head"
    head, weight, own_weight = joined(profile.head, support_inputs(task))
    left_out = np.full(own.shape, np.nan) if head.held_out is None else head.held_out
    used = head_from(*head_arrays(head))
    return {
        "lt": own_weight * test,
        "ls": own_weight * own,
        "zs_s": own_weight * zero_shot[0],
        "weight": np.array(weight),
        "ho": left_out,
        "ht": used.logits(task.test.features(), zero_shot[1]),
        "hs": used.logits(support.features(), zero_shot[0]),
        "ys": support.labels,
        "yt": task.test.labels,
        "held": np.array(pool.held),
        "rows": task.rows,
    }


def features_of(pool: Pool) -> Kept:
    """Unit features before the projection, of the pool's test (f1) and training pictures (t1)."""
    return {
        "f1": pool.test.features()[-2],
        "t1": pool.train.features()[-2],
        "labels": pool.test.labels,
        "train_labels": pool.train.labels,
        "held": np.array(pool.held),
    }


def side_of(part: str, held: int) -> slice:
    """Validation pictures stand before the test pictures."""
    return slice(0, held) if part == "validation" else slice(held, None)


def temperature_of(kept: Kept, weight: float) -> float:
    """The run's, as `jobs/answers.py` fits it."""
    if np.isfinite(kept["ho"]).all():
        logits = kept["zs_s"] + weight * kept["ho"]
        return from_held_out(logits, kept["ys"], weight).temperature
    return from_spread(kept["ls"] + weight * kept["hs"], SUM_SPREAD).temperature


def judged(logits: Array, labels: Array) -> tuple[float, float]:
    """Expected calibration error and negative log-likelihood."""
    counted = Calibration()
    counted.add(labels, logits)
    found = counted.result()
    assert found is not None
    return found.expected_error, found.negative_log_likelihood


def auroc(known: Array, unknown: Array) -> float:
    """How often a known picture scores above an unknown one; ties count half."""
    above = np.searchsorted(np.sort(unknown), known, "left").sum()
    ties = np.searchsorted(np.sort(unknown), known, "right").sum() - above
    return float((above + ties / 2) / (len(known) * len(unknown)))


def known_row(rows: Array, name: str, pools: dict[str, Kept], part: str) -> dict[str, float]:
    """What the support pictures in `rows` tell of a part's pictures, of all data sets."""
    mine = pools[name]
    support = normalise(mine["t1"][rows])
    labels = mine["train_labels"][rows]

    def scores(of: Kept, kept: Array) -> Array:
        side = side_of(part, int(of["held"]))
        return nearest(normalise(of["f1"][side]) @ kept.T, NEIGHBOURS)

    own = scores(mine, support)
    others = [scores(of, support) for other, of in pools.items() if other != name]
    threshold = choose_threshold(left_out_scores(support, NEIGHBOURS))
    true = mine["labels"][side_of(part, int(mine["held"]))]
    near = []
    for left in np.unique(labels):
        found = scores(mine, support[labels != left])
        near.append(auroc(found[true != left], found[true == left]))
    return {
        "far": float(np.mean([auroc(own, other) for other in others])),
        "near": float(np.mean(near)),
        "refused": float((own < threshold).mean()),
        "caught": float(np.mean([(other < threshold).mean() for other in others])),
    }


def rows_of(
    task: tuple[str, int, int], kept: Kept, weight: float, pools: dict[str, Kept]
) -> list[Row]:
    """One row a part."""
    temperature, found = temperature_of(kept, weight), []
    for part in PARTS:
        side = side_of(part, int(kept["held"]))
        logits, labels = kept["lt"][side] + weight * kept["ht"][side], kept["yt"][side]
        before, after = judged(logits, labels), judged(logits / temperature, labels)
        values = {
            "accuracy": float((logits.argmax(axis=1) == labels).mean()),
            "error_before": before[0],
            "error": after[0],
            "loss_before": before[1],
            "loss": after[1],
            "temperature": temperature,
            **known_row(kept["rows"], task[0], pools, part),
        }
        told = {key: round(value, 4) for key, value in values.items()}
        found.append({"dataset": task[0], "shots": task[1], "seed": task[2], "part": part, **told})
    return found


def table(rows: list[Row], part: str) -> str:
    """Means over data sets and seeds by shots, in percent but for AUROCs."""
    header = ("accuracy", "error_before", "error", "far", "near", "refused", "caught")
    lines = [f"| shots | {' | '.join(header)} |", "|---" * (len(header) + 1) + "|"]
    for shots in sorted({int(str(row["shots"])) for row in rows}):
        mine = [r for r in rows if int(str(r["shots"])) == shots and r["part"] == part]
        means = [float(np.mean([float(str(r[key])) for r in mine])) for key in header]
        cells = [
            f"{m:.3f}" if key in ("far", "near") else f"{100 * m:.1f}"
            for key, m in zip(header, means, strict=True)
        ]
        lines.append(f"| {shots} | {' | '.join(cells)} |")
    return "\n".join(lines)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--out", type=Path, default=Path("answers"))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 16])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--validation-per-class", type=int, default=40)
    parser.add_argument("--test-per-class", type=int, default=100)
    return parser.parse_args()


def main() -> None:
    """Collect what is not there, judge all of it, print the tables."""
    arguments = parse_arguments()
    arguments.out.mkdir(parents=True, exist_ok=True)
    bundle = Bundle.open(arguments.bundle)
    kept: dict[tuple[str, int, int], Kept] = {}
    pools: dict[str, Kept] = {}
    for data in arguments.data:
        name, pool = data.stem, None
        files = {
            (name, shots, seed): arguments.out / f"{name}-{shots}-{seed}.npz"
            for shots, seed in itertools.product(arguments.shots, range(arguments.seeds))
        }
        activations = arguments.out / f"pool-{name}.npz"
        if not all(path.is_file() for path in (activations, *files.values())):
            pool = load_pool(
                bundle,
                hold_out(data, arguments.validation_per_class),
                arguments.cache,
                shots=max(arguments.shots),
                seeds=arguments.seeds,
                test_per_class=arguments.test_per_class,
            )
            np.savez(activations, allow_pickle=False, **features_of(pool))
        pools[name] = dict(np.load(activations))
        for task, path in files.items():
            if not path.is_file():
                assert pool is not None
                np.savez(path, allow_pickle=False, **collect(pool, *task[1:]))
                print(f"{path.stem}: done", file=sys.stderr, flush=True)
            kept[task] = dict(np.load(path))
    rows: list[Row] = []
    for task, found in kept.items():
        rows += rows_of(task, found, float(found["weight"]), pools)
    result_rows.save(arguments.out / "answers.csv", rows, _FIELDS)
    for part in PARTS:
        print(f"## {part}\n\n{table(rows, part)}\n")


if __name__ == "__main__":
    main()
