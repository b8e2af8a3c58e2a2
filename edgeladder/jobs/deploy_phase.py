"""The deploy worker: one ONNX file of a run, compared with what predict says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgeladder.core.inference import Deployment, InferenceOrder
from edgeladder.jobs.planned_classifier import with_classifier
from edgeladder.runtime.deployment import checked_dtype, write_model

if TYPE_CHECKING:
    from edgeladder.core.orders import Outcome
    from edgeladder.jobs.control import Control


def deploy(order: InferenceOrder, control: Control) -> tuple[Outcome, Deployment | None]:
    """Write the file that the request names."""
    request = order.request
    dtype = checked_dtype(request.out, request.dtype)
    return with_classifier(
        order,
        control,
        lambda classifier: write_model(
            classifier, Path(request.out), dtype, portable=request.portable
        ),
    )
