"""The head that counts beside a trained ladder: fitted in the evaluate worker, and weighed.

What weighs ladder against head comes from the support set: held-out logits of both where folds
were trained, else how many pictures there are, and what the labels say of zero-shot.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.budget.policy import EVALUATE_CHUNK, EVALUATE_WINDOW, wanted_head_pictures
from edgeladder.core.adapter_record import StoredHead
from edgeladder.core.config import HeadConfig
from edgeladder.core.events import Progress
from edgeladder.core.job import PhaseOrder
from edgeladder.jobs.answers import HeldOut, held_out_logits, zero_shot_logits
from edgeladder.jobs.folds import held_out, logits_of
from edgeladder.jobs.run_directory import RunDirectory
from edgeladder.runtime.heads.blend import choose_head_weight
from edgeladder.runtime.heads.closed_form import Head, head_arrays, with_stored_head
from edgeladder.runtime.heads.fit_head import (
    fit_cached_head,
    fixed_head_weight,
    gathered,
    head_sample,
    ladder_weight,
)
from edgeladder.runtime.heads.linear_probe import fit_linear, weight_beside_ladder
from edgeladder.runtime.logits import ClassLogits

if TYPE_CHECKING:
    from edgeladder.jobs.control import Control
    from edgeladder.runtime.adapter import Adapter
    from edgeladder.runtime.cache.inputs import CacheInputs, CacheReader
    from edgeladder.runtime.engine.protocol import Engine

Array = np.ndarray


def with_fitted_head(
    order: PhaseOrder,
    adapter: Adapter,
    engine: Engine,
    reader: CacheReader,
    labelled: int,
    logits: ClassLogits,
    control: Control,
) -> tuple[ClassLogits, HeldOut | None]:
    """Fit the profile's head and put it into the adapter.

    Args:
        order: the job and sizes.
        adapter: that gets the head.
        engine: with the trained ladder.
        reader: of all training pictures, those that were given a label by the head last.
        labelled: how many had one before.
        logits: the formula.
        control: told how far it is.

    Returns:
        The formula beside the head as it is stored, and what was held out of both.
    """
    job, run = order.job, RunDirectory(order.job.request.folder)
    config, labels, classes = job.profile.head, reader.train_labels, job.counts.classes
    kind = "blend" if config.kind == "none" else config.kind
    others = len(labels) - labelled
    most = order.sizes.head_pictures or wanted_head_pictures(kind, labelled, classes, others)
    rows = head_sample(labels, labelled, most, job.seed)
    sample, chunk = reader.part(rows), order.sizes.chunk or EVALUATE_CHUNK
    windows = sample.windows("train", EVALUATE_WINDOW)
    if config.kind == "none":
        inputs = gathered(logits, windows, kind, chunk)
        linear = fit_linear(inputs)
        ladder = logits_of(engine, sample, logits, chunk)
        weights = weight_beside_ladder(ladder, linear, inputs), 1.0
        head: Head = linear
    else:
        every = None
        if len(rows) < len(labels):  # the sample gives settings and support, all the rest
            windows_of_all = reader.windows("train", EVALUATE_WINDOW)
            every = told(windows_of_all, len(labels), control, note="fitting the head")
        head = fit_cached_head(
            logits, windows, kind, every=every, linear=config.has_linear, pictures=len(labels),
            chunk=chunk,
        )  # fmt: skip
        mine = rows < labelled  # the first ones: what folds left out is judged on these
        weights = _weights(config, head, held_out(run.folder, len(labels)), labels, rows, mine)
        if config.full_at is not None and not config.alone:
            plain = zero_shot_logits(reader.part(rows[mine]), logits)
            weights = weights[0], ladder_weight(plain, labels[rows[mine]])
    whole = logits.with_head(head, *weights)
    left_out = held_out_logits(run.folder, reader, rows, head, whole, labelled)
    adapter.head_arrays, rule = head_arrays(head)
    stored = StoredHead(rule, *weights)
    adapter.record = replace(adapter.record, head=stored)
    del head, whole  # the next one is as large
    # judged as it is stored
    return with_stored_head(logits, stored, adapter.head_arrays), left_out


def told(
    windows: Iterable[CacheInputs], total: int, control: Control, note: str = ""
) -> Iterator[CacheInputs]:
    """The windows, and how far they are."""
    done = 0
    for window in windows:
        yield window
        done += len(window.labels)
        control.tell(Progress(step=done, steps=total, note=note))


def _weights(
    config: HeadConfig, head: Head, left: Array | None, labels: Array, rows: Array, mine: Array
) -> tuple[float, float]:
    """Weights of the head, fitted on `rows` of the training pictures, and of the ladder.

    Args:
        config: the profile's.
        head: with its held-out logits.
        left: the folds' ladders' logits of what each did not see; None: no folds.
        labels: of all training pictures.
        rows: of them, what the head was fitted on.
        mine: which of those somebody gave a label.
    """
    if config.alone:
        return 1.0, 0.0
    if config.weight is None and head.held_out is not None and left is not None:
        judged = rows[mine]
        return choose_head_weight(left[judged], head.held_out[mine], labels[judged]), 1.0
    classes = int(labels.max()) + 1
    return fixed_head_weight(config.weight, config.full_at, len(labels), classes), 1.0
