"""What a tower takes on another execution provider: as its trial on this machine measured it.

Libraries of accelerators take what they take, from 100 MB to more than a small budget; no formula
knows. So the trial's worker is measured while it compiles the tower and runs it, and a plan counts
that peak, and beside it what a GPU took that shares the RAM (a Jetson's).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from edgeladder.budget.costs import COSTS
from edgeladder.budget.policy import PROVIDER_BATCH, TEXT_BATCH
from edgeladder.budget.tower_costs import tower_bytes
from edgeladder.budget.workload import InferenceWorkload, Workload, phase_of
from edgeladder.core.plan import MachineBaseline, PhasePlan, Plan
from edgeladder.core.provider import ProviderChoice
from edgeladder.core.sizes import format_size

_REPLACED = ("baseline", "backbone", "towers")  # of a phase on the CPU


def with_provider(
    phases: Iterable[PhasePlan],
    workload: Workload | InferenceWorkload,
    baseline: MachineBaseline,
    room: int,
) -> Iterator[PhasePlan]:
    """The phases of the CPU, and before them the fastest one on the chosen provider.

    Args:
        phases: fastest first.
        room: bytes that a plan may fill.
    """
    known = list(phases)
    if workload.provider.accelerates:
        yield _accelerated(known[0], workload, baseline, room)
    yield from known


def _accelerated(
    fastest: PhasePlan,
    workload: Workload | InferenceWorkload,
    baseline: MachineBaseline,
    room: int,
) -> PhasePlan:
    choice = workload.provider
    # class names pass the text tower on the CPU, and are done before the provider starts
    text = tower_bytes(workload.manifest.text, TEXT_BATCH, False, None)
    before = fastest.parts["baseline"] + max(text, COSTS.tokenizer)
    parts: dict[str, float] = {
        name: size for name, size in fastest.parts.items() if name not in _REPLACED
    }
    parts["provider"] = max(choice.worker_bytes, before)
    parts["pictures_code"] = baseline.pictures_bytes + COSTS.decoded_picture
    parts["gpu"] = choice.gpu_bytes
    peak = sum(int(size) for size in parts.values())
    sizes = {
        **fastest.sizes(),
        "provider": choice.name,
        # a trial has built engines for two sizes of a batch, and no others are built later
        "batch": 1 if fastest.batch == 1 else PROVIDER_BATCH,
        "gpu_limit_bytes": max(choice.gpu_bytes, room - peak + choice.gpu_bytes),
        "disk_bytes": fastest.disk_bytes,
    }
    return phase_of(parts, **sizes)


def settled(plan: Plan, choice: ProviderChoice) -> Plan:
    """The plan with what runs its image tower: the CPU where the chosen provider does not fit."""
    if choice.accelerates and not any(phase.provider for phase in plan.phases.values()):
        size = format_size(choice.worker_bytes + choice.gpu_bytes)
        choice = ProviderChoice(
            reason=f"{choice.reason}; but the budget has no room for the {size} of its worker",
            difference=choice.difference,
            speedup=choice.speedup,
        )
    return replace(plan, provider=choice)
