"""All phases of a run in this process, one after the other: the pipeline without its workers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from edgeladder.core.job import Job, PhaseOrder, PlanOrder
from edgeladder.core.plan import MachineBaseline
from edgeladder.core.records import to_json
from edgeladder.core.request import TrainRequest
from edgeladder.jobs.control import Control
from edgeladder.jobs.evaluate_phase import score
from edgeladder.jobs.plan_phase import prepare
from edgeladder.jobs.precompute_phase import fill
from edgeladder.jobs.pseudo_label_phase import label
from edgeladder.jobs.train_phase import fit

MB = 1_000_000
_BASELINE = MachineBaseline(20 * MB, 60 * MB, 50 * MB, 10 * MB, 0, 0, 0)
_NAMES = {"fill": "precompute", "label": "pseudo_label", "fit": "train", "score": "evaluate"}


def prepared(request: TrainRequest) -> Job:
    """What the plan worker decides."""
    return prepare(PlanOrder(request=replace(request, baseline=_BASELINE)), Control())[1]


def phase(function: Any, job: Job, control: Control | None = None) -> Any:
    """One phase as its worker runs it: outcome and result."""
    sizes = job.plan.phases[_NAMES[function.__name__]]
    return function(PhaseOrder(job=job, sizes=sizes), control or Control())


def run(request: TrainRequest) -> dict[str, Any]:
    """Plan, precompute, train and evaluate; the training's and the evaluation's results."""
    job = prepared(request)
    results: dict[str, Any] = {"prepared": job}
    labelling = (label,) if job.counts.unlabelled else ()
    for function in (fill, *labelling, fit, score):
        outcome, result = phase(function, job)
        assert outcome == "done", function.__name__
        results |= to_json(result)
    return results
