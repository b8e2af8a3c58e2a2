"""A ladder trained on one task by the product's own loop, without the worker processes around it.

Batches, callbacks, optimiser and averaging are `edgeladder.jobs`'s; so is the head that joins.
What is left out is what changes no number: supervisor, plan, checkpoints while running.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import Profile
from edgeladder.core.job import Condensation, Counts, Job, PhaseOrder
from edgeladder.core.plan import MachineBaseline, PhasePlan, Plan
from edgeladder.core.request import TrainRequest
from edgeladder.core.yaml_config import override
from edgeladder.jobs.control import Control
from edgeladder.jobs.train_phase import _loop, begin, open_engine_named
from edgeladder.runtime.cache.inputs import CacheBatches, CacheReader
from edgeladder.runtime.cache.sampler import Sampler
from edgeladder.runtime.engine.protocol import Engine
from edgeladder.runtime.logits import Activations as Cached
from edgeladder.runtime.logits import ClassLogits, class_embeddings
from tools.bench.task import Activations, Task

Array = np.ndarray
_CHUNK = 256
_PLAN = Plan(  # nothing is planned here: only the moments are read
    budget_bytes=0,
    minimum_budget_bytes=0,
    fits=True,
    phases={"train": PhasePlan(moments="fp32")},
    classes=0,
    pictures=0,
    baseline=MachineBaseline(*[0] * len(fields(MachineBaseline))),
)


def job_of(task: Task, bundle: Bundle, profile: Profile, threads: int) -> Job:
    """What the plan worker would hand to the train worker (`jobs/plan_phase.py`)."""
    count = len(task.rows) if task.labelled is None else task.labelled
    batch = min(profile.train.batch, count)
    per_epoch = math.ceil(count / batch)
    steps = profile.train.steps or profile.train.epochs * per_epoch
    keep = profile.ladder.prompts.keep
    condense = None
    if keep is not None and keep < 1:
        until = steps + profile.condense.epochs * per_epoch
        condense = Condensation(at=steps, until=until, keep=keep, train=profile.condense.train)
    never = override(
        profile, ["train.checkpoint_steps=1000000000", "train.checkpoint_seconds=1000000000"]
    )
    return Job(
        request=TrainRequest(bundle=str(bundle.folder)),
        budget_bytes=0,
        seed=task.seed,
        threads=threads,
        engine="stock",
        bundle_digest="",
        steps=condense.until if condense else steps,
        condense=condense,
        proximal=profile.loss.proximal * task.classes / count,
        folds=0,
        batch=batch,
        warmup_steps=math.ceil(profile.train.warmup_epochs * per_epoch),
        profile=never,
        plan=_PLAN,
        counts=Counts(train=count, test=len(task.test.labels), classes=task.classes),
    )


@contextlib.contextmanager
def trained_ladder(
    task: Task, bundle: Bundle, profile: Profile, *, threads: int = 1
) -> Iterator[tuple[Engine, int]]:
    """Train on the support set as `edgeladder train` would.

    Args:
        task: support and test pictures.
        bundle: whose ladder; the tower must be the task's.
        profile: training recipe; the ladder's shape is the bundle's.

    Yields:
        The engine with what it learnt, closed afterwards, and the steps taken.
    """
    job = job_of(task, bundle, profile, threads)
    order = PhaseOrder(job=job)
    reader = task.reader(bundle).part(task.rows)
    sampler = Sampler(len(task.rows), job.batch, job.seed, profile.train.views)
    batches = CacheBatches(reader, sampler)
    engine = open_engine_named(job, bundle, order.sizes)
    begin(engine, bundle, batches, job)
    with tempfile.TemporaryDirectory() as folder:
        loop = _loop(order, engine, bundle, batches, Path(folder), lambda record: None, Control())
        done = loop.run()
    loop.apply_average()
    try:
        yield engine, done.step
    finally:
        engine.close()


def train_ladder(
    task: Task, bundle: Bundle, profile: Profile, *, threads: int = 1
) -> tuple[Array, int]:
    """Logits of the test pictures (m, C) by the ladder alone, and the steps it took."""
    with trained_ladder(task, bundle, profile, threads=threads) as (engine, steps):
        text = tuned_classes(engine, task.reader(bundle))
        return encode(engine, task, task.test, text, bundle.manifest.ladder.image_inputs), steps


def ladder_sides(
    task: Task, bundle: Bundle, profile: Profile, *, threads: int = 1
) -> tuple[Array, Array]:
    """Logits by the ladder alone of the test (m, C) and of the support pictures (n, C)."""
    with trained_ladder(task, bundle, profile, threads=threads) as (engine, _):
        text, wanted = tuned_classes(engine, task.reader(bundle)), bundle.manifest.ladder
        test, own = (
            encode(engine, task, side, text, wanted.image_inputs)
            for side in (task.test, task.support)
        )
    return test, own


def tuned_classes(engine: Engine, reader: CacheReader) -> Array:
    """Every class of a reader as the ladder embeds it, (C, D)."""
    return class_embeddings(engine, next(reader.windows("test", 1)), _CHUNK).tuned


def encode(
    engine: Engine, task: Task, images: Activations, text: Array, wanted: list[str]
) -> Array:
    """Tuned logits (n, C)."""
    formula, logits = ClassLogits.of(task.bundle.manifest.model), []
    for start in range(0, len(images.labels), _CHUNK):
        window = slice(start, min(start + _CHUNK, len(images.labels)))
        taps = [np.ascontiguousarray(t[:, :, window], np.float32) for t in images.taps]
        extra = {name: np.ascontiguousarray(images.extra[name][window]) for name in wanted}
        given = Cached(taps, images.embedding[window], extra)
        logits.append(formula.tuned(engine, given, text))
    return np.concatenate(logits)
