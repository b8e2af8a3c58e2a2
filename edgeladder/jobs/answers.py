"""What makes a trained run's answers ones to act on: its temperature, and what it knows.

Both are made of the support set at the end of training, in the evaluate worker: the temperature of
held-out logits (`runtime/calibration.py`), and the pictures that known ones are near to
(`runtime/known.py`). No test picture is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.budget.policy import EVALUATE_WINDOW
from edgeladder.budget.policy import known_pictures as wanted_known_pictures
from edgeladder.jobs.folds import held_out
from edgeladder.runtime.calibration import SUM_SPREAD, from_held_out, from_spread
from edgeladder.runtime.heads.kernel import balanced
from edgeladder.runtime.known import ROWS, fit_known
from edgeladder.runtime.logits import ClassEmbeddings, ClassLogits, class_embeddings, windows

if TYPE_CHECKING:
    from pathlib import Path

    from edgeladder.core.adapter_record import CalibrationRecord, KnownRecord
    from edgeladder.runtime.cache.inputs import CacheReader
    from edgeladder.runtime.engine.protocol import Engine
    from edgeladder.runtime.heads.closed_form import Head

Array = np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """Logits of support pictures by what did not see them."""

    logits: Array  # (n, C), at temperature 1
    labels: Array  # (n,)
    expected: float  # the temperature to stay near: the head's weight


def held_out_logits(
    run: Path, reader: CacheReader, rows: Array, head: Head, formula: ClassLogits, labelled: int
) -> HeldOut | None:
    """What a head and its ladder say of pictures that neither saw; None where nothing was left out.

    Args:
        run: run directory, whose folds' ladders count where there are any.
        reader: of all training pictures.
        rows: of those, the ones that the head was fitted on.
        head: as it was fitted, with its held-out logits.
        formula: with the weights of both.
        labelled: training pictures that somebody gave a label, the first ones: they alone count.

    A ladder's own logits of its support pictures say nothing. Without folds zero-shot takes its
    place, which it began at and which saw no label.
    """
    if head.held_out is None:
        return None
    labels, told = reader.train_labels, rows < labelled
    left = held_out(run, len(labels)) if formula.ladder_weight else None
    beside = zero_shot_logits(reader.part(rows), formula) if left is None else left[rows]
    logits = formula.ladder_weight * beside + formula.head_weight * head.held_out
    return HeldOut(logits[told], labels[rows[told]], formula.head_weight)


def zero_shot_logits(reader: CacheReader, formula: ClassLogits) -> Array:
    """Zero-shot's logits (n, C) of a reader's training pictures."""
    windows = reader.windows("train", EVALUATE_WINDOW)
    return np.concatenate(
        [formula.similarity(window.image_embedding, window.text_embedding) for window in windows]
    )


def calibrate(
    found: HeldOut | None,
    engine: Engine,
    reader: CacheReader,
    formula: ClassLogits,
    *,
    chunk: int,
    seed: int,
) -> CalibrationRecord:
    """The run's temperature: of held-out logits, or of the spread of its own where there are none.

    Of the ladder's own logits beside it, which alone speak of names that training never saw.

    Args:
        found: held-out logits.
        engine: with the trained parameters.
        reader: of all training pictures.
        formula: with the head as it is stored, at temperature 1.
        chunk: pictures or classes encoded at a time.
        seed: of the pictures looked at, where there are many.
    """
    fitted = found is not None and len(found.labels) > 0
    rows = balanced(reader.train_labels, EVALUATE_WINDOW, seed)
    both: list[Array] = []
    alone: list[Array] = []
    classes: ClassEmbeddings | None = None
    for inputs in reader.part(rows).windows("train", EVALUATE_WINDOW):
        if classes is None:
            classes = class_embeddings(engine, inputs, chunk)
        for _, given in windows(inputs, chunk):
            tuned = formula.tuned(engine, given, classes.tuned)
            alone.append(tuned)
            if formula.head is not None and not fitted:
                zero_shot = formula.similarity(given.embedding, classes.zero_shot)
                both.append(formula.joined(formula.head, tuned, zero_shot, given))
    ladder = from_spread(np.concatenate(alone))
    whole = ladder
    if found is not None and fitted:
        whole = from_held_out(found.logits, found.labels, found.expected)
    elif both:
        whole = from_spread(np.concatenate(both), SUM_SPREAD)
    return replace(whole, ladder_temperature=ladder.temperature)


def known_pictures(
    reader: CacheReader, *, chunk: int, seed: int
) -> tuple[KnownRecord, dict[str, Array]]:
    """What an adapter keeps to tell a picture of no class: at most `policy.known_pictures`.

    Classes are thinned alike; each keeps at least one picture.
    """
    labels = reader.train_labels
    rows = balanced(labels, wanted_known_pictures(True, len(labels), int(labels.max()) + 1), seed)
    record, kept = fit_known(reader.part(rows).windows("train", EVALUATE_WINDOW), chunk=chunk)
    return record, {ROWS: kept}
