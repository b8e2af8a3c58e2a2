"""The pseudo-label worker: which unlabelled pictures get which label, before the ladder is trained.

The head that the labelled pictures make gives labels to those it is sure of
(`runtime/heads/pseudo_labels.py`); from here on they train like the others, ladder and head alike.
What was found stands in the run's folder, so that a run that goes on trains on the same.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.budget.policy import (
    EVALUATE_CHUNK,
    EVALUATE_WINDOW,
    FEWEST_UNLABELLED,
    PSEUDO_LABELLED_SHARE,
    labelled_at_once,
    self_training_passes,
    self_training_pictures,
)
from edgeladder.core.bundle import Bundle
from edgeladder.core.events import Progress
from edgeladder.core.job import PhaseOrder, PseudoLabelResult
from edgeladder.core.orders import Outcome
from edgeladder.core.tensors import TensorFile, is_intact, write_tensors
from edgeladder.jobs.control import LeaveError, obey
from edgeladder.jobs.run_directory import RunDirectory
from edgeladder.runtime.cache.inputs import CacheReader, open_reader
from edgeladder.runtime.cache.selection import Selection
from edgeladder.runtime.heads.closed_form import Blend
from edgeladder.runtime.heads.fit_head import fit_gathered_head, gathered, head_accuracy
from edgeladder.runtime.heads.head_inputs import HeadInputs
from edgeladder.runtime.heads.kernel import balanced
from edgeladder.runtime.heads.linear_probe import beside_head
from edgeladder.runtime.heads.self_training import SelfTraining, self_train
from edgeladder.runtime.logits import ClassLogits

if TYPE_CHECKING:
    from edgeladder.jobs.control import Control

Array = np.ndarray
_REMEDY = "delete this file and resume the run"


def label(order: PhaseOrder, control: Control) -> tuple[Outcome, PseudoLabelResult | None]:
    """Give labels to unlabelled pictures; writes the run's pseudo-labels.

    Args:
        order: the job, and sizes: head_pictures, chunk.
    """
    run = RunDirectory(order.job.request.folder)
    selection = Selection.load(run.selection)
    before = _found_before(run, selection.unlabelled_keys)
    if before is not None:
        return "done", before
    try:
        result, labels = _labelled(order, selection, control)
    except LeaveError as leave:
        return leave.outcome, None
    told = {"result": json.dumps(asdict(result)), "keys": _digest(selection.unlabelled_keys)}
    write_tensors(run.pseudo_labels, {"labels": labels}, told)
    return "done", result


def with_pseudo_labels(run: RunDirectory, selection: Selection) -> tuple[Selection, int]:
    """The selection with what got a label among its training pictures, and how many had one before.

    Raises:
        IntegrityError: the run's pseudo-labels are damaged.
    """
    labelled = len(selection.train_labels)
    if not len(selection.unlabelled_keys) or not run.pseudo_labels.is_file():
        return selection, labelled
    stored = TensorFile(run.pseudo_labels, remedy=_REMEDY)
    return selection.with_labels(stored["labels"]), labelled


def _found_before(run: RunDirectory, keys: Array) -> PseudoLabelResult | None:
    """What the run found before it was stopped; None: nothing, or it was of other pictures."""
    if not run.pseudo_labels.is_file() or not is_intact(run.pseudo_labels):
        return None
    stored = TensorFile(run.pseudo_labels, remedy=_REMEDY)
    told = json.loads(stored.metadata["result"])
    if told["pictures"] != len(keys) or stored.metadata["keys"] != _digest(keys):
        return None
    return PseudoLabelResult(**told)


def _digest(keys: Array) -> str:
    return hashlib.sha256(keys.tobytes()).hexdigest()


def _labelled(
    order: PhaseOrder, selection: Selection, control: Control
) -> tuple[PseudoLabelResult, Array]:
    started = time.monotonic()
    job, request = order.job, order.job.request
    bundle = Bundle.reopen(request.bundle)
    labels, classes = selection.train_labels, selection.classes
    count, most = len(selection.unlabelled_keys), order.sizes.head_pictures or 0
    chunk = order.sizes.chunk or EVALUATE_CHUNK
    reader = open_reader(bundle, request.cache, selection, keep_bytes=0)
    logits = ClassLogits.of(bundle.manifest.model)
    rows = balanced(labels, most, job.seed)
    support = _inputs(logits, reader, rows, chunk)
    every = reader.windows("train", EVALUATE_WINDOW) if len(rows) < len(labels) else None
    head = fit_gathered_head(logits, support, "blend", every=every, chunk=chunk)
    assert isinstance(head, Blend)
    without = None
    if len(selection.test_labels):  # the head that this run would have without them
        linear = job.profile.head.has_linear
        alone = beside_head(head, support, len(labels)) if linear else head
        without = head_accuracy(logits, alone, reader.windows("test", EVALUATE_WINDOW), chunk)
    reason = _too_few(count, len(labels), len(classes), most)
    found = np.full(count, -1, np.int32)
    strange = 0
    if not reason:
        even = job.profile.unlabelled.classes == "even"
        how = how_to_label(len(labels), count, len(classes), even=even, most=most)
        given = self_train(
            head,
            support,
            lambda places: _inputs(logits, reader.unlabelled(), places, chunk),
            count,
            how,
            told=lambda done: _obeyed(control, done, how.passes * count),
        )
        found, strange = given.labels, given.strange
    counts = np.bincount(found[found >= 0], minlength=len(classes)).tolist()
    result = PseudoLabelResult(
        pictures=count,
        used=sum(counts),
        strange=strange,
        classes=dict(zip(classes, counts, strict=True)),
        reason=reason,
        accuracy_without=without,
        seconds=round(time.monotonic() - started, 3),
    )
    return result, found


def how_to_label(
    labelled: int, unlabelled: int, classes: int, *, even: bool, most: int
) -> SelfTraining:
    """How labels are given to so many pictures; `most` of all are looked at together."""
    return SelfTraining(
        passes=self_training_passes(even, labelled, classes),
        even=even,
        most=most,
        fitted_on=self_training_pictures(labelled, unlabelled, classes),
        surest=PSEUDO_LABELLED_SHARE,
    )


def _too_few(count: int, labelled: int, classes: int, most: int) -> str:
    """Why no picture gets a label, whatever it shows; empty: there is no such reason."""
    wanted = FEWEST_UNLABELLED * classes
    if count < wanted:
        return f"{count} pictures are too few for {classes} classes: {wanted} say something"
    if most - labelled_at_once(labelled, most, classes) < wanted:
        return f"the budget leaves room for {most} pictures at a time: too few for the classes"
    return ""


def _inputs(logits: ClassLogits, reader: CacheReader, rows: Array, chunk: int) -> HeadInputs:
    windows = reader.part(rows).windows("train", EVALUATE_WINDOW)
    return gathered(logits, windows, "blend", chunk)


def _obeyed(control: Control, done: int, count: int) -> None:
    """Tell how far it is, and take orders. Raises LeaveError where one is to leave."""
    control.tell(Progress(step=done, steps=count, note="labels for unlabelled pictures"))
    obey(control)
