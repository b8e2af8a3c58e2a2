"""The judge worker: what a run says of every picture, for `compare` and for training again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeladder.core.comparison import Judgements
from edgeladder.core.events import Progress
from edgeladder.core.inference import InferenceOrder
from edgeladder.jobs.planned_classifier import with_classifier
from edgeladder.runtime.evaluation import Judged
from edgeladder.runtime.judging import judge_each

if TYPE_CHECKING:
    from edgeladder.core.orders import Outcome
    from edgeladder.jobs.control import Control


def judge(order: InferenceOrder, control: Control) -> tuple[Outcome, Judgements | None]:
    """Label the pictures that the request names, or those that the run `like` held out."""
    request = order.request
    judged = Judged(data=request.data, cache=request.cache, split=request.split)
    like = Path(request.like or request.run)

    def told(done: int, total: int) -> None:
        control.tell(Progress(step=done, steps=total))

    return with_classifier(
        order, control, lambda classifier: judge_each(classifier, judged, like, told)
    )
