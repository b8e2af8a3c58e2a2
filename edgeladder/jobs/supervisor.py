"""The process that stays: it starts each phase's worker, watches the tree, and keeps the promise.

It imports no numpy, no onnxruntime and no pydantic, because it counts inside the budget. Phases
run one after the other in processes of their own, so that what one held is gone before the next:

    plan        validate, open the data, predict, choose sizes, write the run's configuration
    precompute  pictures and class names through the frozen backbone into the cache
    pseudo_label  which unlabelled pictures get which label, where there are any
    train       the ladder, from the cache
    evaluate    zero-shot and tuned accuracy on the held-out pictures
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NoReturn

from edgeladder.budget import meter, policy
from edgeladder.budget.surroundings import surrounding
from edgeladder.core import disk, errors
from edgeladder.core.cache_use import share_cache
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.files import write_json
from edgeladder.core.job import (
    EvaluateResult,
    Job,
    PlanOrder,
    PrecomputeResult,
    PseudoLabelResult,
    TrainResult,
)
from edgeladder.core.memory_record import MemoryResult
from edgeladder.core.orders import BaselineOrder, ProviderOrder
from edgeladder.core.ownership import require_ours
from edgeladder.core.plan import MachineBaseline, Plan
from edgeladder.core.progress import NORMAL
from edgeladder.core.provider import ProviderChoice, offered
from edgeladder.core.records import from_json, to_json
from edgeladder.core.request import TrainRequest
from edgeladder.core.result import CacheUse, RunResult, Seconds, Throughput
from edgeladder.core.user_cache import baseline_path
from edgeladder.jobs.child import with_package
from edgeladder.jobs.finished import drop_checkpoints, finished_result
from edgeladder.jobs.phase_runner import PhaseRunner, Progress, Record
from edgeladder.jobs.providers import Trying, chosen_provider
from edgeladder.jobs.run_directory import MetricsLog, RunDirectory, new_run_folder


def train(
    request: TrainRequest, progress: Progress | None = None, record: Record | None = None
) -> RunResult:
    """Plan, precompute what is missing, train, evaluate.

    Args:
        request: what to do.
        progress: told (phase, done, total, note, used_bytes, budget_bytes).
        record: given each line of evidence: limits, memory actions, restarts, peaks.

    Raises:
        ConfigError, DataError, IntegrityError: before anything heavy starts.
        BudgetError: the plan does not fit, or memory ran out again and again.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
        StorageError: the disk is full; checkpoints and cache so far are kept.
    """
    with Supervisor(request, progress, record) as supervisor:
        return supervisor.train()


def precompute(
    request: TrainRequest, progress: Progress | None = None, record: Record | None = None
) -> tuple[PrecomputeResult, MemoryResult]:
    """Plan, then fill the cache; arguments as `train`'s."""
    with Supervisor(request, progress, record, keep_run=False) as supervisor:
        return supervisor.precompute()


def plan(request: TrainRequest) -> Plan:
    """What `train` would do. Never a BudgetError."""
    with Supervisor(request, keep_run=False) as supervisor:
        return supervisor.plan()


def become(
    request: TrainRequest,
    *,
    as_json: bool = False,
    then: Sequence[str] = (),
    level: int = NORMAL,
) -> NoReturn:
    """Replace this process by a bare supervisor, so that a large caller does not count.

    The new process prints the result and exits with the design's codes.

    Args:
        request: what to do.
        as_json: whether errors and the result are printed as JSON.
        then: arguments of a Python process that takes over after a training that succeeded, in
            place of printing; the run's folder is added to them.
        level: how much it says on stderr, of `core.progress`.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    told = {"json": as_json, "request": to_json(request), "then": list(then), "level": level}
    values = json.dumps(told)
    arguments = [sys.executable, "-m", "edgeladder.jobs", values]
    os.execve(sys.executable, arguments, with_package(os.environ))


class Supervisor(PhaseRunner):
    """Runs the phases of one request; holds the run's lock, its log and the signal handlers."""

    def __init__(
        self,
        request: TrainRequest,
        progress: Progress | None = None,
        record: Record | None = None,
        *,
        keep_run: bool = True,
    ):
        run = None
        if keep_run:
            if request.resume and not request.run:
                raise errors.ConfigError("nothing to resume", remedy="name the run: --resume RUN")
            folder = Path(request.run) if request.run else new_run_folder(Path("runs"))
            request = replace(request, run=str(folder))
            run = RunDirectory(folder)
        super().__init__(request, run, progress, record)
        self._cache_use: int | None = None

    def __enter__(self) -> Supervisor:
        self._interrupts.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._interrupts.__exit__()
        if self.metrics is not None:
            self.metrics.close()
        if self.run is not None:
            self.run.unlock()
        if self._cache_use is not None:
            os.close(self._cache_use)

    def train(self) -> RunResult:
        """All phases of a run."""
        assert self.run is not None
        self._check_folder(self.run)
        fresh = not self.run.folder.exists()
        self.run.lock(tell=lambda what: self.progress("train", 0, None, what))
        before = finished_result(self.run) if self.request.resume else None
        if before is not None:
            return before
        try:
            job = self._decide("train")
        except EdgeLadderError:
            if fresh:
                self._forget_run()
            raise
        self.metrics = MetricsLog(self.run.metrics, self.request.tensorboard)
        self.record(
            {"kind": "start", "budget_bytes": self.budget_bytes, "plan": job.plan.to_json()}
        )
        if self.surrounding is not None:
            self.record({"kind": "surrounding", **to_json(self.surrounding)})
        filled = job.filled or self.phase("precompute", job, PrecomputeResult)
        if job.filled is not None:
            self._told_filled(filled)
            job = replace(job, filled=None)  # no worker after this asks
        labelled = job.untaught
        if job.counts.unlabelled:
            labelled = self.phase("pseudo_label", job, PseudoLabelResult)
        trained = self.phase("train", job, TrainResult)
        evaluated = self.phase("evaluate", job, EvaluateResult)
        result = self._result(job, filled, labelled, trained, evaluated)
        values = to_json(result)
        self.record({"kind": "result", **values})
        write_json(self.run.result, values)
        if not self.request.keep_checkpoints:
            drop_checkpoints(self.run)
        return result

    def _check_folder(self, run: RunDirectory) -> None:
        if self.request.resume and not run.started():
            raise errors.ConfigError(
                "no run to resume here",
                where=str(run.folder),
                remedy="name the folder of a run, or leave --resume out to start one",
            )
        option = "--out" if self.request.condense else "--run"
        if not self.request.resume and run.started():
            raise errors.ConfigError(
                "this folder holds a run already",
                where=str(run.folder),
                remedy=f"continue it with `edgeladder train --resume {run.folder}`, or choose "
                f"another {option}",
            )
        if not self.request.resume:
            require_ours(run.folder, "run", option=option)

    def _result(
        self,
        job: Job,
        filled: PrecomputeResult,
        labelled: PseudoLabelResult | None,
        trained: TrainResult,
        evaluated: EvaluateResult,
    ) -> RunResult:
        if labelled is not None:
            labelled = replace(labelled, accuracy_with=evaluated.head_accuracy)
        return RunResult(
            run=self.request.folder,
            engine=trained.engine,
            steps=trained.steps,
            seed=job.seed,
            counts=job.counts,
            accuracy=evaluated.accuracy,
            memory=self.memory(job.plan),
            throughput=Throughput(
                precompute_images_per_second=filled.images_per_second,
                train_images_per_second=trained.images_per_second,
                step_ms_median=trained.step_ms_median,
            ),
            resumed_from=trained.resumed_from,
            skipped_inputs=filled.skipped_inputs,
            loss=trained.loss,
            head=evaluated.head,
            prompts=trained.prompts,
            condensed=trained.condensed,
            unlabelled=labelled,
            adapter_bytes=RunDirectory(self.request.folder).adapter.stat().st_size,
            provider=filled.provider,
            cache=CacheUse(new=filled.new, reused=filled.reused),
            seconds=Seconds(
                precompute=filled.seconds,
                train=trained.seconds,
                evaluate=evaluated.seconds,
                pseudo_label=labelled.seconds if labelled else 0.0,
            ),
        )

    def plan(self) -> Plan:
        """Plan only."""
        return self._ask(PlanOrder(request=self._told_request(), command="plan")).plan

    def precompute(self) -> tuple[PrecomputeResult, MemoryResult]:
        """Plan and precompute only."""
        job = self._decide("precompute")
        filled = self.phase("precompute", job, PrecomputeResult)
        return filled, self.memory(job.plan)

    def _decide(self, command: Literal["train", "precompute"]) -> Job:
        """The plan worker's decisions, which hold from here on."""
        job = self._ask(PlanOrder(request=self._told_request(), command=command))
        self.budget_bytes, self.request = job.budget_bytes, job.request
        cache = Path(self.request.cache)
        with contextlib.suppress(OSError):  # what it is instead, precompute says
            disk.make_folders(cache)
        self._cache_use = share_cache(cache)
        return job

    def _ask(self, order: PlanOrder) -> Job:
        return from_json(Job, self.run_phase("plan", order), where="the plan worker")

    def _told_filled(self, filled: PrecomputeResult) -> None:
        """Planning found the cache full: no worker was needed for it."""
        self.progress("precompute", 0, None, "")
        words = f"{filled.reused} cached, nothing new"
        self.progress("precompute", filled.reused, filled.reused, words)
        self.record({"kind": "cached", "reused": filled.reused, "text": filled.text_reused})

    def _told_request(self) -> TrainRequest:
        baseline = None
        if not baseline_path().is_file():  # else the plan worker, which starts anyway, reads it
            measured = self.run_phase("baseline", BaselineOrder())
            baseline = from_json(MachineBaseline, measured, where="the baseline worker")
        self.surrounding = surrounding(meter.private(os.getpid()))
        return replace(
            self.request,
            chosen=self._provider(),
            baseline=baseline,
            supervisor_bytes=policy.planned_supervisor(meter.private(os.getpid())),
            surrounding=self.surrounding,
        )

    def _provider(self) -> ProviderChoice | None:
        """What runs the image tower; a run that goes on keeps what it began with."""
        request = self.request
        if request.resume:
            return request.chosen
        order = ProviderOrder(bundle=request.bundle, threads=request.threads)
        budget = policy.within(request.budget_bytes or self._default_budget(), self.surrounding)
        trying = Trying(budget, request.limit, lambda: self.interrupted, self.progress, self.record)
        return chosen_provider(request.provider, order, trying)

    def _default_budget(self) -> int:
        """What a trial may take where no budget was named; the plan worker decides the job's."""
        device = None
        if self.request.device is not None and offered(self.request.provider):
            from edgeladder.core.yaml_config import load_device  # 20 MB, which then count

            device = load_device(self.request.device).default_budget_bytes
        return policy.default_budget(device, meter.available_bytes() or meter.total_bytes())

    def _forget_run(self) -> None:
        """A request that was refused leaves no folder behind."""
        assert self.run is not None
        self.run.unlock()
        with contextlib.suppress(OSError):
            for path in (self.run.folder / ".lock", self.run.log):
                disk.unlink(path)
            disk.remove_folder(self.run.folder)
