"""One phase of a run: its worker is started, watched, and started again with less.

It imports no numpy, no onnxruntime and no pydantic, because it counts inside the budget.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from edgeladder.budget import kernel_marks, policy
from edgeladder.budget.limits import MemoryLimit
from edgeladder.core.command_line import resume_command
from edgeladder.core.errors import BudgetError, Interrupted
from edgeladder.core.job import Job, PhaseOrder
from edgeladder.core.memory_record import MemoryAction, MemoryResult, PhaseMemory
from edgeladder.core.orders import FreeOrder
from edgeladder.core.plan import PhasePlan, Plan, Surrounding
from edgeladder.core.records import from_json
from edgeladder.core.request import TrainRequest
from edgeladder.jobs.attempt import Attempt
from edgeladder.jobs.blame import Blame
from edgeladder.jobs.interrupts import Interrupts
from edgeladder.jobs.run_directory import MetricsLog, RunDirectory
from edgeladder.jobs.worker_limit import open_worker_limit

if TYPE_CHECKING:
    from edgeladder.core.orders import Order

Progress = Callable[..., None]  # (phase, done, total, note, used_bytes, budget_bytes)
Record = Callable[[dict[str, Any]], None]
Result = TypeVar("Result")


class PhaseRunner:
    """Runs phases within the budget, and keeps what was measured of them."""

    def __init__(
        self,
        request: TrainRequest,
        run: RunDirectory | None,
        progress: Progress | None,
        record: Record | None,
    ):
        self.request = request
        self.run = run
        self.progress = progress or (lambda *event: None)
        self._evidence: Record = record or (lambda values: None)
        self.budget_bytes = request.budget_bytes or 0
        self.metrics: MetricsLog | None = None
        self.measured: dict[str, int] = {}
        self.layer: str | None = None
        self.surrounding: Surrounding | None = None  # known once a worker has planned
        self.actions: list[MemoryAction] = []
        self._interrupts = Interrupts()
        self.gpu_before = kernel_marks.gpu_bytes()

    @property
    def interrupted(self) -> bool:
        """Whether a signal to stop has come."""
        return self._interrupts.came

    @property
    def where(self) -> str | None:
        """The run that errors name."""
        return self.request.run

    def record(self, values: dict[str, Any]) -> None:
        """Append to metrics.jsonl, where the run has one, and tell who listens."""
        self._evidence(values)
        if self.metrics is not None:
            self.metrics(values)

    def memory(self, plan: Plan) -> MemoryResult:
        """Planned against measured peak per phase, and which limit held."""
        phases = {
            name: PhaseMemory(
                planned_peak_bytes=plan.phases[name].planned_peak_bytes,
                measured_peak_bytes=self.measured[name],
            )
            for name in plan.phases
            if name in self.measured
        }
        return MemoryResult(
            budget_bytes=self.budget_bytes,
            enforcement=self.layer,
            phases=phases,
            actions=self.actions,
            surrounding=self.surrounding,
        )

    def enforced_bytes(self, phase: str) -> int:
        """The budget a phase runs under; 0 while it is being settled.

        A budget too small even to plan in must still be refused by name, and what planning needs
        is part of the smallest budget that fits.
        """
        return 0 if phase in ("baseline", "plan") else self.budget_bytes

    def phase(self, name: str, job: Job, result: type[Result]) -> Result:
        """Run a phase of a job to its end; see `run_phase`."""
        order = PhaseOrder(job=job, sizes=job.plan.phases[name])
        return from_json(result, self.run_phase(name, order, job.plan), where=f"the {name} worker")

    def run_phase(self, name: str, order: Order, plan: Plan | None = None) -> Any:
        """Run a worker to its end, starting it again with less when memory runs out.

        Returns:
            The result's plain values.

        Raises:
            EdgeLadderError: what the worker raised; BudgetError after the last restart.
        """
        planned = plan.phases[name].planned_peak_bytes if plan and name in plan.phases else 0
        causes: list[str] = []
        blame = Blame()
        planned_sizes = getattr(order, "sizes", PhasePlan())
        self.progress(name, 0, None, "")
        while True:
            with self._limit(name, plan) as limit:
                attempt = Attempt(self, name, order, limit)
                outcome, result = attempt.run(planned)
            if outcome == "done":
                return result
            if outcome == "stop":
                raise self._stopped(name)
            causes.append(attempt.cause)
            if not isinstance(order, (PhaseOrder, FreeOrder)):
                pass  # sizes of its own choice
            elif blame.falls_on(attempt.picture):
                # it is the picture, not the sizes: go on without it, with them as planned
                order = replace(order, avoid=(*order.avoid, attempt.picture), sizes=planned_sizes)
                del causes[-policy.PICTURE_DEATHS :]
            elif plan is not None:
                reached = replace(order.sizes, chunk=attempt.chunk or order.sizes.chunk)
                order = replace(order, sizes=policy.shrink(plan, name, reached))
            self._record_restart(name, order, attempt, len(causes))
            if len(causes) > self.request.restarts:
                raise self._gave_up(name, causes, attempt)

    def _stopped(self, name: str) -> Interrupted:
        if self.run is not None and self.run.started():
            return Interrupted(
                f"stopped during {name}; all work so far is saved",
                where=self.request.run,
                remedy=f"go on with: {resume_command(self.request.folder)}",
            )
        saved = "all work so far is saved" if name == "precompute" else "nothing was begun"
        return Interrupted(f"stopped during {name}; {saved}", remedy="run the same command again")

    def _record_restart(self, name: str, order: Order, attempt: Attempt, count: int) -> None:
        sizes = order.sizes.sizes() if isinstance(order, (PhaseOrder, FreeOrder)) else {}
        self.record(
            {
                "kind": "restart",
                "phase": name,
                "cause": attempt.cause,
                "attempt": count,
                "last_step": attempt.last_step,
                "checkpoint_step": attempt.checkpoint_step,
                "sizes": sizes,
            }
        )

    def _gave_up(self, name: str, causes: list[str], attempt: Attempt) -> BudgetError:
        peak = attempt.sampled_peak_bytes
        return BudgetError(
            f"{name} ran out of memory {len(causes)} times within a budget of "
            f"{self.budget_bytes / 1e6:.0f} MB ({'; '.join(dict.fromkeys(causes))}); the last time "
            f"{attempt.reached()}; the last checkpoint is of step "
            f"{attempt.checkpoint_step}, the last step was {attempt.last_step}",
            where=self.request.run,
            remedy=f"--budget {policy.next_budget(self.budget_bytes, peak) / 1e6:.0f}MB"
            + (f" with --resume {self.request.run}" if self.run is not None else ""),
        )

    @contextlib.contextmanager
    def _limit(self, name: str, plan: Plan | None) -> Iterator[MemoryLimit]:
        if not self.enforced_bytes(name):
            yield MemoryLimit("none")
            return
        baseline = plan.baseline if plan is not None else None
        limit = open_worker_limit(self.request.limit, self.budget_bytes, baseline)
        self.layer = limit.layer
        try:
            yield limit
        finally:
            limit.close()
