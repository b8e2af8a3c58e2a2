"""How much a closed-form head counts beside the ladder: ladders that did not see every picture.

A ladder's logits on its own training pictures say nothing of its worth, because it was trained on
them. So k further ladders are trained, each without its share of every class's pictures, and give
the logits of those. The head's held-out logits come in closed form (`heads/kernel.py`); the weight
that joins both best is found by `heads/blend.py`. No test picture is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.budget.policy import EVALUATE_WINDOW
from edgeladder.core import disk
from edgeladder.core.events import Event, Progress
from edgeladder.core.orders import Outcome
from edgeladder.core.tensors import TensorFile, is_intact, write_tensors
from edgeladder.runtime.heads.kernel import shot_folds
from edgeladder.runtime.logits import ClassEmbeddings, ClassLogits, class_embeddings, windows

if TYPE_CHECKING:
    from edgeladder.jobs.control import Control
    from edgeladder.runtime.cache.inputs import CacheReader
    from edgeladder.runtime.engine.protocol import Engine

# trains a ladder on part of the pictures: (rows, checkpoints, control) -> engine and outcome
Train = Callable[[np.ndarray, Path, Any], tuple["Engine", Outcome]]


def folds_of(labels: np.ndarray, count: int) -> np.ndarray | None:
    """Fold of every picture, (n,), classes in every fold alike; None where a class is too small.

    Args:
        labels: (n,).
        count: folds wanted; as many as the smallest class has pictures are made, if fewer.
    """
    shots = int(np.bincount(labels).min())
    if min(count, shots) < 2:
        return None
    return shot_folds(labels) % min(count, shots)


def train_folds(
    run: Path, reader: CacheReader, count: int, train: Train, control: Control, *,
    logits: ClassLogits, chunk: int, record: Callable[[dict[str, Any]], None],
) -> Outcome:  # fmt: skip
    """Train every fold's ladder and write the held-out logits; those on disk already stay.

    Args:
        run: run directory; `folds/` below it is made.
        reader: of all training pictures.
        count: folds.
        train: trains one ladder from the start, or from its checkpoint.
        logits: the formula.
        chunk: pictures or classes encoded at a time.

    Returns:
        `done`, or the order to leave that came: what is finished is kept.
    """
    folds = folds_of(reader.train_labels, count)
    if folds is None:
        return "done"
    total = int(folds.max()) + 1
    for fold in range(total):
        target = run / "folds" / f"{fold}.safetensors"
        if target.is_file() and is_intact(target):
            continue
        checkpoints = run / "checkpoints" / f"fold-{fold}"
        disk.make_folders(checkpoints)
        told = _Within(control, f"fold {fold + 1}/{total}")
        engine, outcome = train(np.flatnonzero(folds != fold), checkpoints, told)
        if outcome != "done":
            engine.close()
            return outcome
        rows = np.flatnonzero(folds == fold)
        found = logits_of(engine, reader.part(rows), logits, chunk)
        engine.close()
        write_tensors(target, {"rows": rows, "logits": found})
        disk.remove_tree(checkpoints)
        hits = float((found.argmax(1) == reader.train_labels[rows]).mean())
        record({"kind": "fold", "fold": fold, "of": total, "accuracy": round(hits, 6)})
    return "done"


def logits_of(engine: Engine, reader: CacheReader, logits: ClassLogits, chunk: int) -> np.ndarray:
    """Tuned logits (n, C) of a reader's training pictures, plain view."""
    found: list[np.ndarray] = []
    classes: ClassEmbeddings | None = None
    for inputs in reader.windows("train", EVALUATE_WINDOW):
        if classes is None:
            classes = class_embeddings(engine, inputs, chunk)
        found += [logits.tuned(engine, given, classes.tuned) for _, given in windows(inputs, chunk)]
    return np.concatenate(found)


def held_out(run: Path, count: int) -> np.ndarray | None:
    """The folds' logits in the order of the training pictures (n, C); None where there are none.

    Args:
        run: run directory.
        count: training pictures.
    """
    files = sorted((run / "folds").glob("*.safetensors"))
    whole: np.ndarray | None = None
    for path in files:
        part = TensorFile(path, remedy="delete this file and resume the run")
        logits = part["logits"]
        if whole is None:
            whole = np.full((count, logits.shape[1]), np.nan)
        whole[part["rows"]] = logits
    return whole if whole is not None and np.isfinite(whole).all() else None


class _Within:
    """A fold's line to the supervisor: orders pass, progress is told under the fold's name."""

    def __init__(self, control: Control, name: str):
        self._control, self._name = control, name

    def take(self) -> list[str]:
        """Orders since the last call."""
        return self._control.take()

    def tell(self, event: Event) -> None:
        """Checkpoints and chunks of a fold are not the run's."""
        if isinstance(event, Progress):
            self._control.tell(replace(event, note=self._name))
