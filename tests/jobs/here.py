"""All phases of a run in this process, one after the other: the pipeline without its workers."""

from __future__ import annotations

from typing import Any

from edgeladder.core.plan import MachineBaseline, PhasePlan
from edgeladder.core.request import TrainRequest
from edgeladder.jobs.control import Control
from edgeladder.jobs.evaluate_phase import score
from edgeladder.jobs.plan_phase import prepare
from edgeladder.jobs.precompute_phase import fill
from edgeladder.jobs.train_phase import fit

MB = 1_000_000
_FLOOR = MachineBaseline(20 * MB, 60 * MB, 50 * MB, 10 * MB, 0, 0, 0)


def prepared(request: TrainRequest) -> dict[str, Any]:
    """What the plan worker decides."""
    request.baseline = _FLOOR.to_json()
    return prepare({"request": request.to_dict()}, Control())[1]


def phase(function: Any, values: dict[str, Any], control: Control | None = None) -> Any:
    """One phase as its worker runs it: outcome and result."""
    planned = values["plan"]["phases"][
        {"fill": "precompute", "fit": "train", "score": "evaluate"}[function.__name__]
    ]
    sizes = PhasePlan.from_json(planned).sizes()
    return function({**values, "sizes": sizes}, control or Control())


def run(request: TrainRequest) -> dict[str, Any]:
    """Plan, precompute, train and evaluate; the training's and the evaluation's results."""
    values = prepared(request)
    results: dict[str, Any] = {"prepared": values}
    for function in (fill, fit, score):
        outcome, result = phase(function, values)
        assert outcome == "done", function.__name__
        results |= result
    return results
