"""The deploy worker: one ONNX file of a run, compared with what predict says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeladder.core.inference import Deployment, InferenceOrder
from edgeladder.jobs.planned_classifier import with_classifier
from edgeladder.runtime.deployment import check_form, write_model

if TYPE_CHECKING:
    from edgeladder.core.orders import Outcome
    from edgeladder.jobs.control import Control


def deploy(order: InferenceOrder, control: Control) -> tuple[Outcome, Deployment | None]:
    """Write the file that the request names."""
    request, out = order.request, Path(order.request.out)
    check_form(out, request.form)
    return with_classifier(
        order, control, lambda classifier: write_model(classifier, out, request.form)
    )
