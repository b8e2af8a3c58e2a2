"""Memory policy: what each phase will need, and the sizes under which it fits the budget.

Every peak is a sum over what is resident at the worst moment, from the manifest and sizes alone;
`towers.py` and `steps.py` say how, `costs.py` holds the fitted coefficients. Candidates come
fastest first, and the first that fits is taken. `train` obeys what is decided here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from edgeladder.budget.baseline import MachineBaseline
from edgeladder.budget.step_costs import evaluate_phases, train_phases
from edgeladder.budget.tower_costs import larger_pictures, precompute_phases
from edgeladder.budget.watchdog import PLANNED
from edgeladder.budget.workload import PhasePlan, Workload
from edgeladder.core.errors import BudgetError
from edgeladder.core.sizes import format_size

_MB = 1_000_000


@dataclass(frozen=True)
class Plan:
    """All phases of a run under one budget."""

    budget_bytes: int
    minimum_budget_bytes: int
    fits: bool
    phases: dict[str, PhasePlan]
    classes: int
    pictures: int
    baseline: MachineBaseline
    least: dict[str, int]  # smallest peak each phase can be brought to

    def to_dict(self) -> dict[str, Any]:
        """The `plan` JSON of the design."""
        return {
            "fits": self.fits,
            "budget_bytes": self.budget_bytes,
            "minimum_budget_bytes": self.minimum_budget_bytes,
            "phases": {name: phase.to_dict() for name, phase in self.phases.items()},
            "classes": self.classes,
            "pictures": self.pictures,
            "baseline": self.baseline.to_dict(),
        }

    def only(self, name: str) -> Plan:
        """The plan of a command that runs one phase alone."""
        phase = self.phases[name]
        least = math.ceil(self.least[name] / PLANNED / _MB) * _MB
        return replace(
            self,
            phases={name: phase},
            minimum_budget_bytes=least,
            fits=least <= self.budget_bytes,
        )

    def check(self) -> None:
        """Refuse before anything starts.

        Raises:
            BudgetError: naming the smallest budget that would fit.
        """
        if self.fits:
            return
        phase = max(self.phases, key=lambda name: self.phases[name].planned_peak_bytes)
        peak = self.phases[phase].planned_peak_bytes
        least = math.ceil(self.minimum_budget_bytes / _MB)
        raise BudgetError(
            f"{phase} needs {format_size(peak)} at its smallest, which fits no budget below "
            f"{least} MB; the budget is {format_size(self.budget_bytes)}",
            where="plan",
            remedy=f"--budget {least}MB or more"
            + (", or --set train.batch with a smaller number" if phase == "train" else ""),
            minimum_budget_bytes=self.minimum_budget_bytes,
        )


def plan(
    workload: Workload,
    baseline: MachineBaseline,
    budget_bytes: int,
    *,
    supervisor_bytes: int = 0,
    mode: str | None = None,
    chunk: int | None = None,
    arena: bool | None = None,
    hold: bool | None = None,
    planning_bytes: int = 0,
) -> Plan:
    """Choose, for each phase, the fastest sizes whose peak fits the budget.

    Args:
        workload: model, data and recipe sizes.
        baseline: of this machine.
        budget_bytes: for the whole process tree.
        supervisor_bytes: of the waiting process; 0 takes the bare supervisor's.
        mode, chunk, arena, hold: asked for by the user; the choice is then only checked.
        planning_bytes: what deciding this took, which no budget can be below.
    """
    base = supervisor_bytes or baseline.supervisor_bytes
    room = int(PLANNED * budget_bytes)
    training = train_phases(workload, baseline, base, room, mode=mode, chunk=chunk, hold=hold)
    choices = {
        "precompute": list(precompute_phases(workload, baseline, base)),
        "train": [phase for phase in training if arena in (None, phase.arena)],
        "evaluate": list(evaluate_phases(workload, baseline, base)),
    }
    phases, least = {}, {}
    for name, candidates in choices.items():
        smallest = min(candidates, key=lambda phase: phase.planned_peak_bytes)
        fitting = (phase for phase in candidates if phase.planned_peak_bytes <= room)
        phases[name] = next(fitting, smallest)
        if phases[name].max_pixels is not None:
            phases[name] = larger_pictures(phases[name], room)
        least[name] = smallest.planned_peak_bytes
    minimum = math.ceil(max(planning_bytes, *least.values()) / PLANNED / _MB) * _MB
    return Plan(
        budget_bytes=budget_bytes,
        minimum_budget_bytes=minimum,
        fits=minimum <= budget_bytes,
        phases=phases,
        classes=workload.classes,
        pictures=workload.pictures,
        baseline=baseline,
        least=least,
    )
