"""The evaluate worker, which finishes a run: head, temperature, known pictures, then accuracy.

Zero-shot and tuned are judged on the held-out pictures, from the cache.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edgeladder.budget.policy import EVALUATE_CHUNK, EVALUATE_WINDOW
from edgeladder.core.adapter_record import KnownRecord, StoredHead
from edgeladder.core.bundle import Bundle
from edgeladder.core.files import write_json
from edgeladder.core.job import Accuracy, EvaluateResult, PhaseOrder
from edgeladder.core.orders import Outcome
from edgeladder.core.plan import PhasePlan
from edgeladder.core.trim import release_startup_memory
from edgeladder.jobs.answers import HeldOut, calibrate, known_pictures
from edgeladder.jobs.fitted_head import told, with_fitted_head
from edgeladder.jobs.pseudo_label_phase import with_pseudo_labels
from edgeladder.jobs.run_directory import RunDirectory
from edgeladder.jobs.train_phase import open_engine_named
from edgeladder.runtime.adapter import load_adapter, save_adapter
from edgeladder.runtime.cache.inputs import CacheReader, open_reader
from edgeladder.runtime.cache.selection import Selection
from edgeladder.runtime.heads.fit_head import head_accuracy
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
    if job.profile.head.fits_any:
        logits, left_out = with_fitted_head(
            order, adapter, engine, every, labelled, logits, control
        )
    taught = len(selection.train_labels) > labelled and side == "test"
    alone = _head_alone(logits, reader, chunk) if taught else None
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
        told(reader.windows(cast("Any", side), EVALUATE_WINDOW), total, control),
        selection.classes,
        split=side,
        chunk=chunk,
        watch=notable.add,
        to_write=True,
    )
    write_json(run.folder / "evaluation.json", {**evaluation, "pictures": notable.to_json()})
    return "done", EvaluateResult(
        accuracy=_accuracy(evaluation),
        head=_described(job.profile.head.kind, adapter.record.head),
        head_accuracy=alone,
        seconds=round(time.monotonic() - started, 3),
    )


def _head_alone(logits: ClassLogits, reader: CacheReader, chunk: int) -> float | None:
    """The head's own accuracy on the held-out pictures; None: there is no head."""
    if logits.head is None:
        return None
    return head_accuracy(logits, logits.head, reader.windows("test", EVALUATE_WINDOW), chunk)


def _accuracy(evaluation: Mapping[str, Any]) -> Accuracy:
    return Accuracy(
        zero_shot=evaluation["zero_shot_accuracy"],
        tuned=evaluation["accuracy"],
        split=evaluation["split"],
        count=evaluation["count"],
        zero_shot_interval=evaluation["zero_shot_interval"],
        tuned_interval=evaluation["interval"],
    )


def _described(kind: str, head: StoredHead | None) -> dict[str, Any] | None:
    """What the result says of a head."""
    if head is None:
        return None
    kind = "linear" if kind == "none" else kind
    return {"kind": kind, "eta": head.head_weight, "ladder": head.ladder_weight}
