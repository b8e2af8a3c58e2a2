#!/usr/bin/env python
"""Few-shot accuracy of every method on the same cache, splits and seeds.

    tools/bench/fewshot.py --bundle bundle --data pictures.zip --data other.zip --out bench

Rows: zero-shot; linear probe, the same on pooled taps, LP++, Tip-Adapter-F, TaskRes, CLAP, ProLIP,
GDA, ProKeR; the multi-tap leave-one-out kernel; the bundle's own head alone, its ladder alone, and
both as `edgeladder train` gives them (`default`); and further ladders from bundles of the same
backbone, `--ladder NAME=BUNDLE[,A.B=C..]`, `--ladders FOLDER` (one per bundle in it, see
variants.py) and `--device-rows` (what needs no bundle of its own). Settings are fixed or chosen on
the support set; the test pictures are used once, to count. Writes results.csv after every task
(run it again and it goes on where it stopped), table.md (means and standard errors) and plot.svg.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import Profile
from edgeladder.core.yaml_config import override  # noqa: E402
from edgeladder.runtime.heads.closed_form import (  # noqa: E402
    Head,
    head_arrays,
    head_from,
)
from edgeladder.runtime.heads.closed_form import (
    Kind as HeadKind,
)
from edgeladder.runtime.heads.linear_probe import (  # noqa: E402
    fit_linear,
    weight_beside_ladder,
)
from tools.bench import result_rows  # noqa: E402
from tools.bench.baselines import METHODS, Method, Support, linear_probe  # noqa: E402
from tools.bench.figures import plot, table  # noqa: E402
from tools.bench.ladder_row import ladder_sides  # noqa: E402
from tools.bench.product_heads import (  # noqa: E402
    fitted,
    joined,
    sample_of,
    support_inputs,
)
from tools.bench.result_rows import Row  # noqa: E402
from tools.bench.task import Task, load_pool  # noqa: E402
from tools.bench.variants import DEVICE  # noqa: E402

Array = np.ndarray
Ladders = dict[str, tuple[Bundle, Profile]]
POOLED = "linear probe, pooled taps"
_CHUNK = 256
_FIELDS = ["dataset", "shots", "seed", "method", "accuracy", "seconds"]
_HEADS: dict[HeadKind, str] = {"gda": "GDA", "proker": "ProKeR", "kernel": "multi-tap kernel"}


def support_of(task: Task) -> Support:
    """The task for a head on final embeddings."""
    return Support(
        task.support.embedding,
        task.support.labels,
        task.text.embedding[:],
        task.bundle.manifest.model.logit_scale,
        task.shots,
        task.support.extra.get("image_embedding_pre"),
    )


def head_of(task: Task, kind: HeadKind) -> Head:
    """A closed-form head fitted on the support set, as an adapter stores it."""
    head = fitted(kind, support_inputs(task), len(task.support.labels))
    return head_from(*head_arrays(head))


def logits_of(head: Head, task: Task) -> Array:
    """Of the test pictures (m, C), some at a time."""
    parts = []
    for start in range(0, len(task.test.labels), _CHUNK):
        features = task.test.features(start, start + _CHUNK)
        parts.append(head.logits(features, task.zero_shot(features[-1])))
    return np.concatenate(parts)


Work = Callable[[], Array]


def _judge(method: Method, support: Support, embedding: Array, before: Array | None) -> Array:
    logits: Array = method(support)(embedding, before)
    return logits


def pooled_probe(task: Task, support: Support) -> Array:
    """The linear probe on every tap's mean over its tokens, beside the embedding."""
    return _judge(
        linear_probe, replace(support, embedding=task.support.pooled()), task.test.pooled(), None
    )


Sides = Callable[[], tuple[Array, Array]]  # a ladder's logits of test and support pictures


def _joined(task: Task, profile: Profile, ladder: Sides) -> Array:
    head, weight, own = joined(profile.head, support_inputs(task))
    stored = head_from(*head_arrays(head))
    return np.asarray(own * ladder()[0] + weight * logits_of(stored, task))


def _with_map(task: Task, ladder: Sides) -> Array:
    """A ladder without a head, and the linear map (`head.kind=none,head.linear=true`)."""
    inputs = support_inputs(task)
    rule, (test, own) = fit_linear(sample_of("blend", inputs, len(inputs.labels))), ladder()
    return np.asarray(test + weight_beside_ladder(own, rule, inputs) * logits_of(rule, task))


def works(task: Task, ladders: Ladders, parts: set[str]) -> Iterator[tuple[str, Work]]:
    """Every method's name and how to get its test logits."""
    support, before = support_of(task), task.test.extra.get("image_embedding_pre")
    if "heads" in parts:
        for name, method in METHODS.items():
            yield name, partial(_judge, method, support, task.test.embedding, before)
        yield POOLED, partial(pooled_probe, task, support)
        for closed, name in _HEADS.items():
            yield name, partial(_closed, task, closed)
    kept: dict[str, tuple[Array, Array]] = {}
    for name, (bundle, profile) in ladders.items():

        def sides(
            name: str = name, bundle: Bundle = bundle, profile: Profile = profile
        ) -> tuple[Array, Array]:
            if name not in kept:
                kept[name] = ladder_sides(task, bundle, profile)
            return kept[name]

        if profile.head.kind == "none":
            yield name, partial(_first, sides)
            continue
        yield f"{name}: ladder alone", partial(_first, sides)
        yield f"{name}: ladder and map", partial(_with_map, task, sides)
        yield f"{name}: head alone", partial(_closed, task, profile.head.kind)
        yield name, partial(_joined, task, profile, sides)


def _first(sides: Sides) -> Array:
    return sides()[0]


def _closed(task: Task, kind: HeadKind) -> Array:
    return logits_of(head_of(task, kind), task)


def run_task(
    task: Task,
    ladders: Ladders,
    parts: set[str],
    done: set[tuple[str, ...]],
    only: list[str] | None = None,
) -> list[Row]:
    """Every method that is not done yet, of `only` those; one row each."""
    rows: list[Row] = []
    for method, work in works(task, ladders, parts):
        if (task.name, str(task.shots), str(task.seed), method) in done:
            continue
        if only is not None and method not in only:
            continue
        started = time.perf_counter()
        given = work()
        rows.append(
            {
                "dataset": task.name,
                "shots": task.shots,
                "seed": task.seed,
                "method": method,
                "accuracy": round(float((given.argmax(axis=1) == task.test.labels).mean()), 6),
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
    return rows


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundle", type=Path, required=True, help="whose backbone and default")
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument(
        "--ladder",
        action="append",
        default=[],
        metavar="NAME=BUNDLE[,A.B=C..]",
        help="a further ladder to train, from its bundle",
    )
    parser.add_argument("--ladders", type=Path, help="a folder of bundles, each a ladder to train")
    parser.add_argument(
        "--device-rows",
        nargs="*",
        choices=list(DEVICE),
        help="further ladders from --bundle by what a device may change; all of them without names",
    )
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--methods", nargs="+", help="these rows alone")
    parser.add_argument("--only-ladders", action="store_true", help="the further ladders alone")
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--dtype", default="fp16", choices=["fp16", "int8"], help="of the cache")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--views", type=int, default=0, help="augmented views to cache")
    parser.add_argument("--test-per-class", type=int, default=None)
    parser.add_argument("--pool-shots", type=int, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def open_ladders(arguments: argparse.Namespace, bundle: Bundle) -> Ladders:
    """The default and what `--ladder` names."""
    ladders: Ladders = {}
    if not arguments.only_ladders:
        ladders["default"] = (bundle, override(bundle.manifest.profile, arguments.settings))
    wanted = {}
    for entry in arguments.ladder:
        name, _, rest = entry.partition("=")
        folder, *settings = rest.split(",")
        wanted[name] = folder or arguments.bundle, settings
    if arguments.ladders:
        folders = sorted(path.parent for path in arguments.ladders.glob("*/manifest.json"))
        wanted |= {folder.name: (folder, arguments.settings) for folder in folders}
    if arguments.device_rows is not None:
        for name in arguments.device_rows or DEVICE:
            wanted[name] = arguments.bundle, [*DEVICE[name], *arguments.settings]
    for name, (folder, settings) in wanted.items():
        opened = Bundle.open(folder)
        shape, mine = (b.manifest.profile.ladder for b in (opened, bundle))
        if (shape.taps, shape.text_taps) != (mine.taps, mine.text_taps):
            print(f"{name}: taps of its own, left out; give it as --bundle", file=sys.stderr)
            continue
        ladders[name] = (opened, override(opened.manifest.profile, settings))
    return ladders


def main() -> None:
    """Run what is not done; each task's results are on disk when it ends."""
    arguments = parse_arguments()
    bundle = Bundle.open(arguments.bundle)
    ladders = open_ladders(arguments, bundle)
    parts = set() if arguments.only_ladders else {"heads"}
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = result_rows.load(arguments.out / "results.csv")
    for data in arguments.data:
        pool = load_pool(
            bundle,
            data,
            arguments.cache,
            shots=arguments.pool_shots or max(arguments.shots),
            seeds=arguments.seeds,
            test_per_class=arguments.test_per_class,
            dtype=arguments.dtype,
            views=arguments.views,
        )
        for shots in arguments.shots:
            for seed in range(arguments.seeds):
                done = {tuple(str(row[key]) for key in _FIELDS[:4]) for row in rows}
                task = pool.task(shots, seed)
                rows += run_task(task, ladders, parts, done, arguments.methods)
                save(arguments.out, rows)
            print(f"{pool.name}, {shots} shots: done", file=sys.stderr, flush=True)
    print(table(rows))


def save(folder: Path, rows: list[Row]) -> None:
    """results.csv, table.md, plot.svg."""
    result_rows.save(folder / "results.csv", rows, _FIELDS)
    (folder / "table.md").write_text(table(rows), encoding="utf-8")
    (folder / "plot.svg").write_text(plot(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
