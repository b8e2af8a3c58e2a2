"""Predict, evaluate and deploy as jobs: one worker under the budget, watched to its end.

The worker plans and works in one process, so that a single picture is answered at once; this
process imports no numpy, no onnxruntime and no pydantic, because it counts inside the budget.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgeladder.budget import kernel_marks, meter, policy
from edgeladder.budget.surroundings import surrounding
from edgeladder.core.errors import BudgetError, Interrupted
from edgeladder.core.inference import PHASE_OF, RESULT_OF, InferenceOrder, InferenceRequest
from edgeladder.core.inference import InferenceResult as Result
from edgeladder.core.memory_record import MemoryAction, MemoryResult, PhaseMemory
from edgeladder.core.orders import BaselineOrder, ProviderOrder
from edgeladder.core.plan import Plan, Surrounding
from edgeladder.core.provider import ProviderChoice
from edgeladder.core.records import from_json
from edgeladder.core.user_cache import baseline_path
from edgeladder.jobs.attempt import Attempt, Listener
from edgeladder.jobs.blame import Blame
from edgeladder.jobs.interrupts import Interrupts
from edgeladder.jobs.machine_baseline import remembered_baseline
from edgeladder.jobs.providers import Trying, chosen_provider
from edgeladder.jobs.worker_limit import open_worker_limit

if TYPE_CHECKING:
    from edgeladder.core.orders import Order
    from edgeladder.jobs.run_directory import RunDirectory

Progress = Callable[..., None]  # (phase, done, total, note)
# deploy compares its file with the CPU
_PROVIDED = ("predict", "evaluate", "judge", "serve")


def run_inference(
    request: InferenceRequest,
    progress: Progress | None = None,
    record: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[Result, MemoryResult]:
    """Do what is asked under the budget: towers whole, streamed by segments, or refused.

    Args:
        request: what to do.
        progress: told of pictures done.
        record: given each line of evidence: limits, memory actions, restarts, peaks.

    Returns:
        What the command found, and planned against measured peak.

    Raises:
        ConfigError, DataError, IntegrityError: as in-process (`runtime`).
        BudgetError: nothing fits, or memory ran out again and again.
        Interrupted: SIGINT or SIGTERM came.
    """
    with Interrupts() as interrupts:
        return InferenceSupervisor(request, interrupts, progress, record).answer()


class InferenceSupervisor:
    """Runs the worker of one request, again with less where memory runs out."""

    run: RunDirectory | None = None  # nothing is kept: the run was finished long ago

    def __init__(
        self,
        request: InferenceRequest,
        interrupts: Interrupts,
        progress: Progress | None,
        record: Callable[[dict[str, Any]], None] | None,
    ):
        self.progress: Progress = _named(request.command, progress)
        self.record: Callable[[dict[str, Any]], None] = record or (lambda values: None)
        self.measured: dict[str, int] = {}
        self.actions: list[MemoryAction] = []
        self.gpu_before = kernel_marks.gpu_bytes()
        self._interrupts = interrupts
        self._layer: str | None = None
        self._surrounding = surrounding(meter.private(os.getpid()))
        self._request = _resolved(request, self._surrounding)
        self._enforced = self._request.budget_bytes or 0
        self._request = replace(self._request, chosen=self._provider())

    def _provider(self) -> ProviderChoice:
        """What runs the image tower; a deployed file is compared with the CPU."""
        request = self._request
        if request.command not in _PROVIDED:
            return ProviderChoice(reason=f"{request.command} runs on the CPU")
        order = ProviderOrder(run=request.run, bundle=request.bundle, threads=request.threads)
        trying = Trying(
            self._enforced, request.limit, lambda: self.interrupted, self.progress, self.record
        )
        return chosen_provider(request.provider, order, trying)

    @property
    def interrupted(self) -> bool:
        """Whether a signal to stop has come."""
        return self._interrupts.came

    @property
    def where(self) -> str:
        """The run that errors name."""
        return self._request.run or self._request.data or ""

    def enforced_bytes(self, phase: str) -> int:
        """The budget that a phase runs under; 0 while what does not fit is named."""
        return self._enforced

    def answer(self) -> tuple[Result, MemoryResult]:
        """Run workers until one is done."""
        request, phase = self._request, PHASE_OF[self._request.command]
        order = self.order()
        causes: list[str] = []
        blame = Blame()
        while True:
            attempt, found = self.attempt(phase, order)
            if found is not None:
                result = from_json(RESULT_OF[request.command], found, where=f"the {phase} worker")
                return result, self.memory(attempt.plan, phase)
            causes.append(attempt.cause)
            if blame.falls_on(attempt.picture):
                # it is the picture, not the sizes: go on without it, with them as planned
                order = replace(order, avoid=(*order.avoid, attempt.picture), sizes=None)
                del causes[-policy.PICTURE_DEATHS :]
            else:
                order = self.shrunk(order, phase, attempt)
            self.record({"kind": "restart", "phase": phase, "cause": attempt.cause})
            if len(causes) > request.restarts:
                raise self.gave_up(attempt, causes)

    def order(self, reserve_bytes: int = 0) -> InferenceOrder:
        """What the first worker is told, once this machine is measured.

        Args:
            reserve_bytes: that this process may yet take, or another beside the worker.
        """
        if not baseline_path().is_file():
            self._measure_machine()
        own = meter.private(os.getpid()) + reserve_bytes
        return InferenceOrder(
            request=self._request,
            budget_bytes=self._enforced,
            surrounding=self._surrounding,
            supervisor_bytes=policy.planned_supervisor(own),
        )

    def shrunk(self, order: InferenceOrder, phase: str, attempt: Attempt) -> InferenceOrder:
        """What the next worker is told after memory ran out in one.

        Raises:
            BudgetError: nothing fits.
        """
        plan = attempt.plan or self._plan(phase, order)
        sizes = order.sizes or plan.phases[phase]
        return replace(order, sizes=policy.shrink(plan, phase, sizes))

    def attempt(
        self, phase: str, order: Order, listener: Listener | None = None
    ) -> tuple[Attempt, Any]:
        """One worker's life; what it found, None where it shall be started again.

        Args:
            phase: the worker's.
            order: its first line.
            listener: who talks with a worker that stays.

        Raises:
            Interrupted: told to stop.
        """
        baseline = None
        if policy.wants_bare_supervisor(self._enforced or None):
            baseline = remembered_baseline()
        limit = open_worker_limit(self._request.limit, self._enforced, baseline)
        self._layer = limit.layer if self._enforced else self._layer
        try:
            attempt = Attempt(self, phase, order, limit, listener)
            outcome, found = attempt.run(0)
        finally:
            limit.close()
        if outcome == "stop":
            raise Interrupted(
                f"stopped during {self._request.command}",
                where=self.where,
                remedy="run the same command again",
            )
        return attempt, found if outcome == "done" else None

    def _plan(self, phase: str, order: InferenceOrder) -> Plan:
        """What a worker that ended before it had a plan would have decided, asked without a limit.

        Raises:
            BudgetError: nothing fits.
        """
        self._enforced = 0
        try:
            attempt, _ = self.attempt(phase, replace(order, only_plan=True))
        finally:
            self._enforced = order.budget_bytes
            self.measured.pop(phase, None)
        if attempt.plan is None:
            raise self.gave_up(attempt, [attempt.cause])
        return attempt.plan

    def _measure_machine(self) -> None:
        """Once per machine, before anything of the budget is spent."""
        self._enforced, budget_bytes = 0, self._enforced
        try:
            self.attempt("baseline", BaselineOrder())
        finally:
            self._enforced = budget_bytes

    def memory(self, plan: Plan | None, phase: str) -> MemoryResult:
        """Planned against measured peak."""
        planned = plan.phases[phase].planned_peak_bytes if plan is not None else 0
        peaks = PhaseMemory(
            planned_peak_bytes=planned, measured_peak_bytes=self.measured.get(phase, 0)
        )
        return MemoryResult(
            budget_bytes=self._enforced,
            enforcement=self._layer,
            phases={self._request.command: peaks},
            actions=self.actions,
            surrounding=self._surrounding,
        )

    def gave_up(self, attempt: Attempt, causes: list[str]) -> BudgetError:
        """The error of workers that ran out of memory again and again."""
        peak = attempt.sampled_peak_bytes
        return BudgetError(
            f"{self._request.command} ran out of memory {len(causes)} times within a budget of "
            f"{self._enforced / 1e6:.0f} MB ({'; '.join(dict.fromkeys(causes))}); "
            f"the last time {attempt.reached()}",
            where=self.where,
            remedy=f"--budget {policy.next_budget(self._enforced, peak) / 1e6:.0f}MB",
        )


def _named(command: str, progress: Progress | None) -> Progress:
    """Progress under the command's name, whatever its phase is called."""
    if progress is None:
        return lambda *event: None
    return lambda phase, *event: progress(command, *event)


def _resolved(request: InferenceRequest, around: Surrounding | None) -> InferenceRequest:
    """The request with the budget that it can have and, where a device is named, its cores."""
    device = None
    if request.device is not None:
        from edgeladder.core.yaml_config import load_device  # 20 MB, which then count

        device = load_device(request.device)
    budget_bytes = request.budget_bytes or policy.default_budget(
        device.default_budget_bytes if device else None,
        meter.available_bytes() or meter.total_bytes(),
    )
    threads = request.threads
    if threads is None and device is not None:
        threads = min(device.cores, len(os.sched_getaffinity(0)))
    return replace(request, budget_bytes=policy.within(budget_bytes, around), threads=threads)
