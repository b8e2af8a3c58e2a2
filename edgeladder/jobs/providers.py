"""Which execution provider runs the image tower: asked before a job is planned, under its budget.

Costs nothing where onnxruntime brings no provider but the CPU's. Elsewhere a short worker looks up
what is remembered, and each provider that was never tried is tried in a worker of its own: one that
crashes, or needs more than the budget, is one that cannot be used. The waiting process imports no
numpy and no onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgeladder.budget import kernel_marks
from edgeladder.core.errors import EdgeLadderError, Interrupted
from edgeladder.core.memory_record import MemoryAction
from edgeladder.core.orders import ProviderOrder
from edgeladder.core.provider import (
    CPU,
    ProviderChoice,
    Trial,
    Trials,
    check_provider,
    choose,
    offered,
)
from edgeladder.core.records import from_json
from edgeladder.jobs.attempt import Attempt
from edgeladder.jobs.worker_limit import open_worker_limit

if TYPE_CHECKING:
    from edgeladder.jobs.run_directory import RunDirectory

PHASE = "provider"


def _never() -> bool:
    return False


def _unheard(*event: Any) -> None:
    return None


@dataclass
class Trying:
    """Who trials are made for (`attempt.Watcher`): a budget, and nothing kept."""

    budget_bytes: int
    limit: str = "auto"  # layer of the kernel's limit
    interrupted_by: Callable[[], bool] = field(default_factory=lambda: _never)
    told: Callable[..., None] = field(default_factory=lambda: _unheard)
    kept: Callable[[dict[str, Any]], None] = field(default_factory=lambda: _unheard)
    where: str | None = None
    run: RunDirectory | None = None
    measured: dict[str, int] = field(default_factory=dict)
    actions: list[MemoryAction] = field(default_factory=list)
    gpu_before: int | None = field(default_factory=kernel_marks.gpu_bytes)

    def __post_init__(self) -> None:
        self.progress: Callable[..., None] = self.told

    def record(self, values: dict[str, Any]) -> None:
        """Keep a line of evidence."""
        self.kept(values)

    @property
    def interrupted(self) -> bool:
        """Whether a signal to stop has come."""
        return self.interrupted_by()

    def enforced_bytes(self, phase: str) -> int:
        """The budget."""
        return self.budget_bytes

    def ask(self, order: ProviderOrder) -> Trials | str:
        """What a worker answers, or why it ended without an answer.

        Raises:
            EdgeLadderError: the worker's: no bundle, or a damaged one.
            Interrupted: told to stop.
        """
        limit = open_worker_limit(self.limit, self.budget_bytes, None)
        try:
            attempt = Attempt(self, PHASE, order, limit)
            outcome, found = attempt.run(0)
        finally:
            limit.close()
        if outcome == "stop":
            raise Interrupted("stopped during a provider's trial", remedy="run it again")
        if outcome != "done":
            return attempt.cause
        return from_json(Trials, found, where="the provider worker")


def chosen_provider(wanted: str, order: ProviderOrder, trying: Trying) -> ProviderChoice:
    """Look up or try what this environment offers, and choose.

    Args:
        wanted: `auto`, `cpu` or a name.
        order: bundle or run, threads and budget; its providers are filled in.
        trying: budget and limit of the trials.

    Raises:
        ConfigError: no such provider, or the one that was named cannot be used.
        EdgeLadderError: no bundle, or a damaged one.
    """
    if check_provider(wanted) == CPU:
        return ProviderChoice()
    names = tuple(item.name for item in offered(wanted))
    if not names:
        return choose(wanted, [])
    order = replace(order, providers=names, budget_bytes=trying.budget_bytes)
    answer = trying.ask(order)
    known = {} if isinstance(answer, str) else {trial.provider: trial for trial in answer.known}
    for name in names:
        if name not in known:
            trying.progress(PHASE, 0, None, f"trying {name}, once for this bundle")
            known[name] = _try(replace(order, providers=(name,), try_now=True), trying)
    return choose(wanted, [known[name] for name in names])


def _try(order: ProviderOrder, trying: Trying) -> Trial:
    """One provider's trial; what ends its worker is its failure."""
    name = order.providers[0]
    try:
        answer = trying.ask(order)
    except Interrupted:
        raise
    except EdgeLadderError as error:
        answer = error.message
    if isinstance(answer, Trials) and answer.known:
        return answer.known[0]
    why = answer if isinstance(answer, str) else "no answer"
    size = f"{order.budget_bytes / 1e6:.0f} MB"
    return Trial(provider=name, arithmetic="", failed=f"its trial within {size} failed ({why})")
