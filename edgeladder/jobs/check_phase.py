"""The check worker: labelled pictures through the cache, and what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from edgeladder.core.bundle import Bundle
from edgeladder.core.inference import InferenceOrder
from edgeladder.core.review import Review
from edgeladder.jobs.review_work import ReviewWork, leaving, run_workload
from edgeladder.runtime.pictures.dataset import open_data
from edgeladder.runtime.review.activations import class_text
from edgeladder.runtime.review.check import CheckOptions, check_pictures

if TYPE_CHECKING:
    from edgeladder.core.orders import Outcome
    from edgeladder.jobs.control import Control


def check(order: InferenceOrder, control: Control) -> tuple[Outcome, Review | None]:
    """Look through the pictures that the request names.

    Raises:
        BudgetError: nothing fits.
        DataError: no pictures, or more than 5 % of them cannot be read.
    """
    request = order.request
    dataset = open_data(request.data or "data")
    bundle = Bundle.open(request.bundle or "bundle")
    workload = run_workload(bundle, None, len(dataset.pictures), len(dataset.classes))
    work = ReviewWork.begin(order, control, bundle, workload)
    if order.only_plan:
        return "done", None

    def look() -> Review:
        text = class_text(work.bundle, dataset, work.folder, work.sizes)
        cached = work.cached(dataset.pictures, dataset.source)
        options = CheckOptions(work.most, request.listed, request.thumbnails, request.seed)
        try:
            return check_pictures(dataset, cached, text, work.square, options, work.obey)
        finally:
            cached.close()

    outcome, found = leaving(look)
    return outcome, cast("Review | None", found)
