"""Evidence of the budget, as commands answer it."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeladder.core.plan import Surrounding


@dataclass(frozen=True, kw_only=True)
class PhaseMemory:
    """A phase's peak over the whole process tree, as predicted and as it was."""

    planned_peak_bytes: int
    measured_peak_bytes: int


@dataclass(frozen=True, kw_only=True)
class MemoryAction:
    """What the watch did about memory, and why."""

    kind: str
    phase: str
    action: str  # trim, checkpoint, halve, restart or kill
    reason: str
    used_bytes: int
    step: int


@dataclass(frozen=True, kw_only=True)
class MemoryResult:
    """Evidence of the budget: planned against measured, and which limit held."""

    budget_bytes: int
    enforcement: str | None  # layer of the kernel's limit; None: no phase ran under one
    phases: dict[str, PhaseMemory] = field(default_factory=dict)
    actions: list[MemoryAction] = field(default_factory=list)
    surrounding: Surrounding | None = None  # a cgroup with a limit that all of it ran in
