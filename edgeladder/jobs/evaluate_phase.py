"""The evaluate worker, which finishes a run: head, temperature, known pictures, then accuracy.

Zero-shot and tuned are judged on the held-out pictures, from the cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgeladder.budget.policy import EVALUATE_CHUNK, EVALUATE_WINDOW, wanted_head_pictures
from edgeladder.core.adapter_record import KnownRecord, StoredHead
from edgeladder.core.bundle import Bundle
from edgeladder.core.config import HeadConfig
from edgeladder.core.events import Progress
from edgeladder.core.files import write_json
from edgeladder.core.job import Accuracy, EvaluateResult, PhaseOrder
from edgeladder.core.orders import Outcome
from edgeladder.core.plan import PhasePlan
from edgeladder.core.trim import release_startup_memory
from edgeladder.jobs.answers import HeldOut, calibrate, held_out_logits, known_pictures
from edgeladder.jobs.folds import held_out
from edgeladder.jobs.pseudo_label_phase import with_pseudo_labels
from edgeladder.jobs.run_directory import RunDirectory
from edgeladder.jobs.train_phase import open_engine_named
from edgeladder.runtime.adapter import Adapter, load_adapter, save_adapter
from edgeladder.runtime.cache.inputs import CacheInputs, CacheReader, open_reader
from edgeladder.runtime.cache.selection import Selection
from edgeladder.runtime.heads.blend import choose_head_weight
from edgeladder.runtime.heads.closed_form import Head, Kind, head_arrays, with_stored_head
from edgeladder.runtime.heads.fit_head import (
    fit_cached_head,
    fixed_head_weight,
    head_accuracy,
    head_sample,
)
from edgeladder.runtime.logits import ClassLogits
from edgeladder.runtime.notable import Notable
from edgeladder.runtime.scoring import evaluate_cached

if TYPE_CHECKING:
    from edgeladder.jobs.control import Control


def score(order: PhaseOrder, control: Control) -> tuple[Outcome, EvaluateResult | None]:
    """Evaluate the run's adapter; writes `evaluation.json`.

    Args:
        order: the job, and sizes: chunk, head_pictures.
    """
    started = time.monotonic()
    job, request = order.job, order.job.request
    chunk = order.sizes.chunk or EVALUATE_CHUNK
    run = RunDirectory(request.folder)
    bundle = Bundle.reopen(request.bundle)
    selection, labelled = with_pseudo_labels(run, Selection.load(run.selection))
    engine = open_engine_named(job, bundle, PhasePlan(mode="chunked", chunk=chunk))
    adapter = load_adapter(run.folder, bundle)
    adapter.apply(engine)
    every = open_reader(bundle, request.cache, selection, keep_bytes=0)
    reader = every.part(np.arange(labelled))  # those that somebody gave a label
    selection = selection.without_pictures()
    release_startup_memory()
    # a data set too small to hold pictures out still gets an answer, named as what it is
    side = "test" if len(selection.test_labels) else "train"
    total = len(selection.test_labels) if side == "test" else labelled

    logits = ClassLogits.of(bundle.manifest.model)
    left_out: HeldOut | None = None
    alone: float | None = None
    if job.profile.head.kind != "none":
        logits, left_out = _with_head(order, adapter, every, labelled, logits, control)
        if len(selection.train_labels) > labelled and side == "test":
            assert logits.head is not None
            tests = reader.windows("test", EVALUATE_WINDOW)
            alone = head_accuracy(logits, logits.head, tests, chunk)
    told_known: KnownRecord | None = None
    if job.profile.head.known:
        told_known, adapter.known_arrays = known_pictures(reader, chunk=chunk, seed=job.seed)
        release_startup_memory()  # what comparing pictures took: it is not needed again
    calibration = calibrate(left_out, engine, reader, logits, chunk=chunk, seed=job.seed)
    del left_out
    logits = logits.at(calibration.temperature)
    adapter.record = replace(adapter.record, calibration=calibration, known=told_known)
    save_adapter(run.folder, adapter)

    notable = Notable(selection.classes)
    evaluation = evaluate_cached(
        engine,
        logits,
        _told(reader.windows(cast("Any", side), EVALUATE_WINDOW), total, control),
        selection.classes,
        split=side,
        chunk=chunk,
        watch=notable.add,
        to_write=True,
    )
    write_json(run.folder / "evaluation.json", {**evaluation, "pictures": notable.to_json()})
    return "done", EvaluateResult(
        accuracy=_accuracy(evaluation),
        head=_described(adapter.record.head),
        head_accuracy=alone,
        seconds=round(time.monotonic() - started, 3),
    )


def _told(
    windows: Iterable[CacheInputs], total: int, control: Control, note: str = ""
) -> Iterator[CacheInputs]:
    """The windows, and how far they are."""
    done = 0
    for window in windows:
        yield window
        done += len(window.labels)
        control.tell(Progress(step=done, steps=total, note=note))


def _accuracy(evaluation: Mapping[str, Any]) -> Accuracy:
    return Accuracy(
        zero_shot=evaluation["zero_shot_accuracy"],
        tuned=evaluation["accuracy"],
        split=evaluation["split"],
        count=evaluation["count"],
        zero_shot_interval=evaluation["zero_shot_interval"],
        tuned_interval=evaluation["interval"],
    )


def _with_head(
    order: PhaseOrder,
    adapter: Adapter,
    reader: CacheReader,
    labelled: int,
    logits: ClassLogits,
    control: Control,
) -> tuple[ClassLogits, HeldOut | None]:
    """Fit the profile's head and put it into the adapter.

    Args:
        order: the job and sizes.
        adapter: that gets the head.
        reader: of all training pictures, those that were given a label by the head last.
        labelled: how many had one before.
        logits: the formula.
        control: told how far it is.

    Returns:
        The formula beside the head as it is stored, and what was held out of both.
    """
    job, run = order.job, RunDirectory(order.job.request.folder)
    config, labels, classes = job.profile.head, reader.train_labels, job.counts.classes
    kind = cast("Kind", config.kind)
    others = len(labels) - labelled
    most = order.sizes.head_pictures or wanted_head_pictures(kind, labelled, classes, others)
    rows = head_sample(labels, labelled, most, job.seed)
    windows = reader.part(rows).windows("train", EVALUATE_WINDOW)
    every = None
    if len(rows) < len(labels):  # the sample gives settings and support, all pictures the rest
        windows_of_all = reader.windows("train", EVALUATE_WINDOW)
        every = _told(windows_of_all, len(labels), control, note="fitting the head")
    chunk = order.sizes.chunk or EVALUATE_CHUNK
    head = fit_cached_head(logits, windows, kind, every=every, chunk=chunk)
    weight, ladder = _weights(config, head, run, labels, rows, labelled)
    whole = logits.with_head(head, weight, ladder)
    left_out = held_out_logits(run.folder, reader, rows, head, whole, labelled)
    adapter.head_arrays, rule = head_arrays(head)
    stored = StoredHead(rule, weight, ladder)
    adapter.record = replace(adapter.record, head=stored)
    del head, whole  # the next one is as large
    # judged as it is stored
    return with_stored_head(logits, stored, adapter.head_arrays), left_out


def _described(head: StoredHead | None) -> dict[str, Any] | None:
    """What the result says of a head."""
    if head is None:
        return None
    return {"kind": head.rule.kind, "eta": head.head_weight, "ladder": head.ladder_weight}


def _weights(
    config: HeadConfig,
    head: Head,
    run: RunDirectory,
    labels: np.ndarray,
    rows: np.ndarray,
    labelled: int,
) -> tuple[float, float]:
    """Weights of the head, fitted on `rows` of the training pictures, and of the ladder.

    What folds leave out is judged where somebody gave the label: on the first `labelled` pictures.
    """
    if config.alone:
        return 1.0, 0.0
    if config.weight is None and head.held_out is not None:
        left = held_out(run.folder, len(labels))
        if left is not None:  # folds were asked for, and there were pictures enough for them
            told = rows < labelled
            mine = rows[told]
            return choose_head_weight(left[mine], head.held_out[told], labels[mine]), 1.0
    classes = int(labels.max()) + 1
    return fixed_head_weight(config.weight, config.full_at, len(labels), classes), 1.0
