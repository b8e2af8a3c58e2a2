"""The first line that a worker reads: its order, one kind for every phase.

The records of a training are loaded where they are ordered only: a prediction does without them,
and answers sooner.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from edgeladder.core.inference import InferenceOrder
from edgeladder.core.plan import PhasePlan
from edgeladder.core.records import from_json

if TYPE_CHECKING:
    from edgeladder.core.job import PhaseOrder, PlanOrder

Outcome = Literal["done", "restart", "stop"]  # of a phase: finished, or an order to leave


@dataclass(frozen=True, kw_only=True)
class BaselineOrder:
    """Measure what a process costs on this machine before it does any work."""


@dataclass(frozen=True, kw_only=True)
class ProviderOrder:
    """Say what providers' trials showed on this machine, or try the first of them."""

    bundle: str | None  # None: the run's
    run: str | None = None
    threads: int | None  # None: all cores
    providers: tuple[str, ...] = ()
    budget_bytes: int = 0
    try_now: bool = False  # else only what is remembered


@dataclass(frozen=True, kw_only=True)
class FreeOrder:
    """What a phase of one's own (`module:function`) is told; it answers with plain values."""

    values: dict[str, Any] = field(default_factory=dict)
    sizes: PhasePlan = field(default_factory=PhasePlan)
    avoid: tuple[str, ...] = ()  # pictures that ended its workers


if TYPE_CHECKING:
    Order = BaselineOrder | PlanOrder | PhaseOrder | InferenceOrder | ProviderOrder | FreeOrder

_INFERENCE = ("predict", "evaluate_pictures", "deploy", "judge", "serve", "check", "suggest")
_TRAINING = ("plan", "precompute", "pseudo_label", "train", "evaluate")


def read_order(phase: str, values: Any) -> Order:
    """The order of a phase from `records.to_json`'s values.

    Raises:
        IntegrityError: not such an order.
    """
    return from_json(_kind(phase), values, where=f"the {phase} worker's order")


def _kind(phase: str) -> type[Order]:
    if phase in _INFERENCE:
        return InferenceOrder
    if phase in _TRAINING:
        from edgeladder.core.job import PhaseOrder, PlanOrder

        return PlanOrder if phase == "plan" else PhaseOrder
    if phase == "provider":
        return ProviderOrder
    return BaselineOrder if phase == "baseline" else FreeOrder
