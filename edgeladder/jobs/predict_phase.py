"""The predict worker: labels for pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeladder.core.events import Progress
from edgeladder.core.inference import InferenceOrder, Predictions
from edgeladder.jobs.planned_classifier import with_classifier
from edgeladder.runtime.prediction import classify, wanted_pictures

if TYPE_CHECKING:
    from edgeladder.core.orders import Outcome
    from edgeladder.jobs.control import Control


def predict(order: InferenceOrder, control: Control) -> tuple[Outcome, Predictions | None]:
    """Label the pictures that the request names."""
    pictures = wanted_pictures(order.request.paths, order.request.top)

    def told(done: int, total: int) -> None:
        control.tell(Progress(step=done, steps=total))

    return with_classifier(
        order, control, lambda classifier: classify(classifier, pictures, order.request.top, told)
    )
