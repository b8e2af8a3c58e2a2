"""A ladder trained on one task through the engine, without the run directory around it."""

from __future__ import annotations

import math

import numpy as np
from task import ArrayInputs, Task

from edgeladder.bundle import Bundle
from edgeladder.config import Profile
from edgeladder.device.data.sampler import Sampler
from edgeladder.device.engine import StepPlan, open_engine
from edgeladder.device.infer.score import class_embeddings
from edgeladder.device.train.schedule import learning_rate

Array = np.ndarray
_CHUNK = 256


def train_ladder(
    task: Task, bundle: Bundle, profile: Profile, *, rows: Array | None = None, threads: int = 2
) -> tuple[Array, Array]:
    """Train on the support set (or its `rows`), as `edgeladder train` would.

    Args:
        task: support and test pictures.
        bundle: whose ladder; the tower must be the task's.
        profile: training recipe; the ladder's shape is the bundle's.
        rows: of the support set to train on; None: all.

    Returns:
        Logits of the test pictures (m, C), and of the support pictures left out (n - rows, C).
    """
    train, seed = profile.train, task.seed
    support = task.support if rows is None else task.support.part(rows)
    engine = open_engine("stock", bundle, StepPlan(threads=threads), train, profile.loss)
    sampler = Sampler(len(support.labels), train.batch, seed)
    steps = train.steps or train.epochs * sampler.steps_per_epoch
    warmup = math.ceil(train.warmup_epochs * sampler.steps_per_epoch)
    average = engine.parameters() if train.average else None
    for step in range(steps):
        indices, _ = sampler.next()
        inputs = ArrayInputs(support.part(indices), task.text)
        engine.step(inputs, learning_rate(step, steps, warmup, train.learning_rate))
        if average is not None:
            decay = min(train.average, (2 + step) / (11 + step))
            for name, value in engine.parameters().items():
                average[name] += np.float32(1 - decay) * (value - average[name])
    if average is not None:
        engine.set_parameters(average)
    text = class_embeddings(engine, ArrayInputs(support, task.text), _CHUNK)
    tested = encode(engine, task, task.test, text)
    if rows is None:
        held_out = np.zeros((0, task.classes))
    else:
        left = np.setdiff1d(np.arange(len(task.support.labels)), rows)
        held_out = encode(engine, task, task.support.part(left), text)
    engine.close()
    return tested, held_out


def encode(engine: object, task: Task, images: object, text: Array) -> Array:
    """Tuned logits (n, C)."""
    model = task.bundle.manifest.model
    inputs = ArrayInputs(images, task.text)  # type: ignore[arg-type]
    logits = []
    for start in range(0, len(inputs.labels), _CHUNK):
        stop = min(start + _CHUNK, len(inputs.labels))
        extra = {n: np.ascontiguousarray(v[start:stop]) for n, v in inputs.image_extra.items()}
        tuned = engine.encode_image(  # type: ignore[attr-defined]
            inputs.image_taps(start, stop), inputs.image_embedding[start:stop], extra
        )
        logits.append(model.logit_scale * (tuned @ text.T) + model.logit_bias)
    return np.concatenate(logits)


def held_out_logits(
    task: Task, bundle: Bundle, profile: Profile, folds: Array, *, threads: int = 2
) -> Array:
    """Ladder logits of every support picture from a ladder that did not see its fold (n, C)."""
    logits = np.zeros((len(task.support.labels), task.classes))
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds != fold)
        logits[folds == fold] = train_ladder(task, bundle, profile, rows=rows, threads=threads)[1]
    return logits
