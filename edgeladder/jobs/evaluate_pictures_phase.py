"""The worker of `evaluate`: accuracy of a run on labelled pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeladder.core.events import Progress
from edgeladder.core.inference import Evaluation, InferenceOrder
from edgeladder.jobs.planned_classifier import with_classifier
from edgeladder.runtime.evaluation import Judged, judge_pictures

if TYPE_CHECKING:
    from edgeladder.core.orders import Outcome
    from edgeladder.jobs.control import Control


def evaluate(order: InferenceOrder, control: Control) -> tuple[Outcome, Evaluation | None]:
    """Judge the run on the pictures that the request names, or on those it held out."""
    request = order.request
    judged = Judged(data=request.data, cache=request.cache, split=request.split)

    def told(done: int, total: int) -> None:
        control.tell(Progress(step=done, steps=total))

    return with_classifier(
        order, control, lambda classifier: judge_pictures(classifier, judged, told)
    )
