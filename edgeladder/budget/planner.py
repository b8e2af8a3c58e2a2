"""What each phase will need, and the sizes under which it fits the budget.

Every peak is a sum over what is resident at the worst moment, from the manifest and sizes alone;
`tower_costs`, `step_costs`, `head_costs` and `inference_costs` say how, `costs` holds the fitted
coefficients, `policy` what may be chosen from. Candidates come fastest first, and the first that
fits is taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

from edgeladder.budget.inference_costs import (
    deploy_phases,
    judge_phases,
    predict_phases,
    serve_phases,
)
from edgeladder.budget.policy import PLANNED_SHARE
from edgeladder.budget.provider_costs import settled, with_provider
from edgeladder.budget.review_costs import review_phases
from edgeladder.budget.step_costs import evaluate_phases, pseudo_label_phases, train_phases
from edgeladder.budget.tower_costs import larger_pictures, precompute_phases
from edgeladder.budget.workload import Asked, InferenceWorkload, Workload
from edgeladder.core.errors import BudgetError, ConfigError
from edgeladder.core.plan import MachineBaseline, PhasePlan, Plan
from edgeladder.core.sizes import format_size

_MB = 1_000_000
_INFERENCE = {
    "predict": predict_phases,
    "evaluate_pictures": judge_phases,
    "deploy": deploy_phases,
    "judge": predict_phases,
    "serve": serve_phases,
    "check": review_phases,
    "suggest": review_phases,
}
INFERENCE_PHASES = tuple(_INFERENCE)


def plan(
    workload: Workload,
    baseline: MachineBaseline,
    budget_bytes: int,
    *,
    supervisor_bytes: int = 0,
    asked: Asked | None = None,
    planning_bytes: int = 0,
) -> Plan:
    """Choose, for each phase of a training, the fastest sizes whose peak fits the budget.

    Args:
        workload: model, data and recipe sizes.
        baseline: of this machine.
        budget_bytes: for the whole process tree.
        supervisor_bytes: of the waiting process; 0 takes the bare supervisor's.
        asked: for by the user; the choice is then only checked.
        planning_bytes: what deciding this took, which no budget can be below.
    """
    asked = asked or Asked()
    base = supervisor_bytes or baseline.supervisor_bytes
    room = int(PLANNED_SHARE * budget_bytes)
    training = train_phases(workload, baseline, base, room, asked)
    labelling: list[PhasePlan] = []
    if workload.unlabelled:  # what a budget has no room for is left out: it refuses no training
        every = list(pseudo_label_phases(workload, baseline, base))
        labelling = [phase for phase in every if phase.planned_peak_bytes <= room]
    choices: dict[str, Iterable[PhasePlan]] = {
        "precompute": with_provider(
            precompute_phases(workload, baseline, base), workload, baseline, room
        ),
        **({"pseudo_label": labelling} if labelling else {}),
        "train": (phase for phase in training if asked.arena in (None, phase.arena)),
        "evaluate": evaluate_phases(workload, baseline, base),
    }
    decided = _choose(choices, baseline, budget_bytes, planning_bytes)
    return replace(
        settled(decided, workload.provider),
        classes=workload.classes,
        pictures=workload.pictures,
        head=workload.head,
        views=workload.views,
        unlabelled=workload.unlabelled if labelling else 0,
    )


def plan_inference(
    workload: InferenceWorkload,
    phase: str,
    baseline: MachineBaseline,
    budget_bytes: int,
    *,
    supervisor_bytes: int = 0,
    planning_bytes: int = 0,
) -> Plan:
    """Choose how a trained run is used: towers whole, or segment by segment in what room there is.

    Args:
        workload: model and adapter sizes.
        phase: predict, evaluate_pictures, deploy or serve: the plan's only phase.
        baseline: of this machine.
        budget_bytes: for the whole process tree.
        supervisor_bytes: of the waiting process; 0 takes the bare supervisor's.
        planning_bytes: what deciding this took, which no budget can be below.

    Returns:
        A plan whose phase says `whole`, `batch` (pictures and prompts in a tower at a time),
        `group` (streamed: pictures per opening of the segments), `chunk` (classes the ladder
        encodes at a time), `max_pixels` and `disk_bytes`; `check` refuses one that does not fit.

    Raises:
        ConfigError: an unknown phase.
    """
    if phase not in INFERENCE_PHASES:
        raise ConfigError(
            f"unknown phase {phase!r}", remedy=f"use one of {', '.join(INFERENCE_PHASES)}"
        )
    base = supervisor_bytes or baseline.supervisor_bytes
    room = int(PLANNED_SHARE * budget_bytes)
    candidates = _INFERENCE[phase](workload, baseline, base)
    choices = {phase: with_provider(candidates, workload, baseline, room)}
    decided = _choose(choices, baseline, budget_bytes, planning_bytes)
    return replace(settled(decided, workload.provider), classes=workload.classes)


def only(plan: Plan, name: str) -> Plan:
    """The plan of a command that runs one phase alone."""
    least = _budget_for(plan.least[name])
    return replace(
        plan,
        phases={name: plan.phases[name]},
        minimum_budget_bytes=least,
        fits=least <= plan.budget_bytes,
    )


def check(plan: Plan) -> None:
    """Refuse before anything starts.

    Raises:
        BudgetError: naming the smallest budget that would fit.
    """
    if plan.fits:
        return
    phase = max(plan.phases, key=lambda name: plan.phases[name].planned_peak_bytes)
    peak = plan.phases[phase].planned_peak_bytes
    least = math.ceil(plan.minimum_budget_bytes / _MB)
    why = f": {plan.narrowed}" if plan.narrowed else ""
    remedy = f"--budget {least}MB or more"
    if why:
        remedy += f", in a cgroup that leaves as much: raise its limit by {_missing(plan)} MB"
    raise BudgetError(
        f"{phase} needs {format_size(peak)} at its smallest, which fits no budget below "
        f"{least} MB; the budget is {format_size(plan.budget_bytes)}{why}",
        where="plan",
        remedy=remedy
        + (", or --set train.batch with a smaller number" if phase == "train" else ""),
        minimum_budget_bytes=plan.minimum_budget_bytes,
    )


def _missing(plan: Plan) -> int:
    return math.ceil((plan.minimum_budget_bytes - plan.budget_bytes) / _MB)


def _choose(
    choices: Mapping[str, Iterable[PhasePlan]],
    baseline: MachineBaseline,
    budget_bytes: int,
    planning_bytes: int,
) -> Plan:
    """The first candidate of each phase that fits, or its smallest."""
    room = int(PLANNED_SHARE * budget_bytes)
    phases: dict[str, PhasePlan] = {}
    least: dict[str, int] = {}
    for name, candidates in choices.items():
        known = list(candidates)
        smallest = min(known, key=lambda phase: phase.planned_peak_bytes)
        fitting = (phase for phase in known if phase.planned_peak_bytes <= room)
        phases[name] = next(fitting, smallest)
        if phases[name].max_pixels is not None:
            phases[name] = larger_pictures(phases[name], room)
        least[name] = smallest.planned_peak_bytes
    minimum = _budget_for(max(planning_bytes, *least.values(), 0))
    return Plan(
        budget_bytes=budget_bytes,
        minimum_budget_bytes=minimum,
        fits=minimum <= budget_bytes,
        phases=phases,
        classes=0,
        pictures=0,
        baseline=baseline,
        least=least,
    )


def _budget_for(peak_bytes: int) -> int:
    """The smallest budget in whole megabytes that a peak fits."""
    return math.ceil(peak_bytes / PLANNED_SHARE / _MB) * _MB
