"""The serve worker: opens a run once, then answers picture after picture until told to leave."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from edgeladder.core.events import Answered, Ready
from edgeladder.core.inference import InferenceOrder
from edgeladder.jobs.control import obey
from edgeladder.jobs.planned_classifier import with_classifier
from edgeladder.runtime.pictures.dataset import Picture
from edgeladder.runtime.pictures.sources import FileSource
from edgeladder.runtime.prediction import predictions

if TYPE_CHECKING:
    from edgeladder.core.inference import Prediction, Question
    from edgeladder.core.orders import Outcome
    from edgeladder.jobs.control import Control
    from edgeladder.runtime.classifier import Classifier


def serve(order: InferenceOrder, control: Control) -> tuple[Outcome, None]:
    """Answer questions; never done, only told to leave."""
    return with_classifier(order, control, lambda classifier: _answer_all(classifier, control))


def _answer_all(classifier: Classifier, control: Control) -> NoReturn:
    """Raises `LeaveError` when the order comes."""
    size = classifier.bundle.manifest.preprocess.size
    classifier.logits(np.zeros((1, size, size, 3), np.uint8))  # opens the tower before it counts
    control.tell(Ready(classes=len(classifier.classes), asked=classifier.run.asked()))
    while True:
        question = control.question()
        if question is None:
            obey(control)
            continue
        control.tell(Answered(number=question.number, prediction=answer(classifier, question)))


def answer(classifier: Classifier, question: Question) -> Prediction:
    """The prediction for one file; its `error` says why where there is none."""
    source = FileSource([question.path], Path("/"), question.path)
    picture = Picture(question.path, "", None, source, 0)
    (found,) = predictions(classifier, [picture], question.top)
    return found
