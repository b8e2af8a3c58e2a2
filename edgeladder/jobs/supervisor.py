"""The process that stays: it starts each phase's worker, watches the tree, and keeps the promise.

It imports no numpy, no onnxruntime and no pydantic, because it counts inside the budget. Phases
run one after the other in processes of their own, so that what one held is gone before the next:

    plan        validate, open the data, predict, choose sizes, write the run's configuration
    precompute  pictures and class names through the frozen backbone into the cache
    train       the ladder, from the cache
    evaluate    zero-shot and tuned accuracy on the held-out pictures
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from edgeladder.budget import kernel_marks, meter, policy
from edgeladder.budget.limits import MemoryLimit, open_limit
from edgeladder.core import errors
from edgeladder.core.errors import BudgetError, EdgeLadderError, Interrupted
from edgeladder.core.files import write_json
from edgeladder.core.ownership import require_ours
from edgeladder.core.plan import PhasePlan, Plan
from edgeladder.core.request import TrainRequest
from edgeladder.jobs.attempt import Attempt
from edgeladder.jobs.run_directory import MetricsLog, RunDirectory, new_run_folder

Progress = Callable[..., None]  # (phase, done, total, note)


def train(request: TrainRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Plan, precompute what is missing, train, evaluate; the `train` JSON of the design.

    Raises:
        ConfigError, DataError, IntegrityError: before anything heavy starts.
        BudgetError: the plan does not fit, or memory ran out again and again.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
        StorageError: the disk is full; checkpoints and cache so far are kept.
    """
    with Supervisor(request, progress) as supervisor:
        return supervisor.train()


def precompute(request: TrainRequest, progress: Progress | None = None) -> dict[str, Any]:
    """Plan, then fill the cache; `new`, `reused`, `skipped_inputs`, `seconds` and `memory`."""
    with Supervisor(request, progress, keep_run=False) as supervisor:
        return supervisor.precompute()


def plan(request: TrainRequest) -> dict[str, Any]:
    """What `train` would do: the `plan` JSON of the design. Never a BudgetError."""
    with Supervisor(request, None, keep_run=False) as supervisor:
        return supervisor.plan()


def become(
    request: TrainRequest,
    *,
    command: str = "train",
    as_json: bool = False,
    then: Sequence[str] = (),
) -> NoReturn:
    """Replace this process by a bare supervisor, so that a large caller does not count.

    The new process prints the result and exits with the design's codes.

    Args:
        request: what to do.
        command: train or precompute.
        as_json: whether errors and the result are printed as JSON.
        then: arguments of a Python process that takes over after a training that succeeded, in
            place of printing; the run's folder is added to them.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    environment = dict(os.environ)
    package = str(Path(__file__).resolve().parents[2])
    path = [package, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(part for part in path if part))
    told = {"command": command, "json": as_json, "request": request.to_dict(), "then": list(then)}
    values = json.dumps(told)
    arguments = [sys.executable, "-m", "edgeladder.jobs", values]
    os.execve(sys.executable, arguments, environment)


class Supervisor:
    """Runs phases for one request; holds the run's lock, its log and the signal handlers."""

    def __init__(self, request: TrainRequest, progress: Progress | None, *, keep_run: bool = True):
        self.request = request
        self.progress = progress or (lambda *event: None)
        self.run: RunDirectory | None = None
        if keep_run:
            if request.resume and not request.run:
                raise errors.ConfigError("nothing to resume", remedy="name the run: --resume RUN")
            folder = Path(request.run) if request.run else new_run_folder(Path("runs"))
            request.run = str(folder)
            self.run = RunDirectory(folder)
        self.budget_bytes = request.budget_bytes or 0
        self.metrics: MetricsLog | None = None
        self.measured: dict[str, int] = {}
        self.layer: str | None = None
        self.actions: list[dict[str, Any]] = []
        self.interrupted = False
        self._handlers: dict[int, Any] = {}
        self.gpu_before = kernel_marks.gpu_bytes()

    def __enter__(self) -> Supervisor:
        for number in (signal.SIGINT, signal.SIGTERM):
            # only the main thread may set handlers; elsewhere signals are the caller's affair
            with contextlib.suppress(ValueError):
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.metrics is not None:
            self.metrics.close()
        if self.run is not None:
            self.run.unlock()

    def _on_signal(self, number: int, frame: object) -> None:
        self.interrupted = True

    # -- commands ---------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """All phases of a run."""
        assert self.run is not None
        fresh = not self.run.folder.exists()
        if self.request.resume and not self.run.started():
            raise errors.ConfigError(
                "no run to resume here",
                where=str(self.run.folder),
                remedy="name the folder of a run, or leave --resume out to start one",
            )
        if not self.request.resume and self.run.started():
            raise errors.ConfigError(
                "this folder holds a run already",
                where=str(self.run.folder),
                remedy=f"continue it with --resume {self.run.folder}, or choose another --run",
            )
        if not self.request.resume:
            require_ours(
                self.run.folder, "run", option="--out" if self.request.condense else "--run"
            )
        self.run.lock()
        try:
            prepared = self.phase("plan", {"request": self._told_request()})
        except EdgeLadderError:
            if fresh:
                self._forget_run()
            raise
        self._adopt(prepared)
        self.metrics = MetricsLog(self.run.metrics)
        self.record({"kind": "start", "budget_bytes": self.budget_bytes, "plan": prepared["plan"]})
        filled = self.phase("precompute", {**prepared})
        trained = self.phase("train", {**prepared})
        evaluated = self.phase("evaluate", {**prepared})
        result = {
            "run": str(self.run.folder),
            "engine": trained["engine"],
            "steps": trained["steps"],
            "seed": prepared["seed"],
            "counts": prepared["counts"],  # pictures and classes; fleets weigh adapters by them
            "accuracy": evaluated["accuracy"],
            "memory": self.memory(prepared["plan"]),
            "throughput": {
                "precompute_images_per_second": filled["images_per_second"],
                "train_images_per_second": trained["images_per_second"],
                "step_ms_median": trained["step_ms_median"],
            },
            "resumed_from": trained["resumed_from"],
            "skipped_inputs": filled["skipped_inputs"],
            "loss": trained["loss"],
            "head": evaluated["head"],  # its kind and both weights; None: no head
            "prompts": trained["prompts"],  # how they are stored; None: as they are
            "cache": {key: filled[key] for key in ("new", "reused")},
            "seconds": {
                "precompute": filled["seconds"],
                "train": trained["seconds"],
                "evaluate": evaluated["seconds"],
            },
        }
        self.record({"kind": "result", **result})
        write_json(self.run.result, result)
        return result

    def plan(self) -> dict[str, Any]:
        """Plan only."""
        prepared = self.phase("plan", {"request": self._told_request(), "only_plan": True})
        return dict(prepared["plan"])

    def precompute(self) -> dict[str, Any]:
        """Plan and precompute only."""
        told = {"request": self._told_request(), "only_precompute": True}
        prepared = self.phase("plan", told)
        self._adopt(prepared)
        filled = self.phase("precompute", {**prepared})
        filled["memory"] = self.memory(prepared["plan"])
        return filled

    def memory(self, plan_values: dict[str, Any]) -> dict[str, Any]:
        """The `memory` object: planned against measured peak per phase, and which limit held."""
        phases = {}
        for name in ("precompute", "train", "evaluate"):
            if name in self.measured:
                phases[name] = {
                    "planned_peak_bytes": plan_values["phases"][name]["planned_peak_bytes"],
                    "measured_peak_bytes": self.measured[name],
                }
        return {
            "budget_bytes": self.budget_bytes,
            "enforcement": self.layer,
            "phases": phases,
            "actions": self.actions,
        }

    def record(self, values: dict[str, Any]) -> None:
        """Append to metrics.jsonl, where the run has one."""
        if self.metrics is not None:
            self.metrics(values)

    def _told_request(self) -> dict[str, Any]:
        self.request.baseline = self.phase("baseline", {})
        own = meter.private(os.getpid())
        bare = self.request.baseline["supervisor_bytes"] if self.request.bare else own
        self.request.supervisor_bytes = min(own, bare)
        return self.request.to_dict()

    def _adopt(self, prepared: dict[str, Any]) -> None:
        self.budget_bytes = prepared["budget_bytes"]
        self.request = TrainRequest.from_dict(prepared["request"])

    def _forget_run(self) -> None:
        """A request that was refused leaves no folder behind."""
        assert self.run is not None
        self.run.unlock()
        with contextlib.suppress(OSError):
            for name in (".lock", "worker.log"):
                (self.run.folder / name).unlink(missing_ok=True)
            self.run.folder.rmdir()

    def enforced_bytes(self, phase: str) -> int:
        """The budget a phase runs under; 0 while it is being settled.

        A budget too small even to plan in must still be refused by name, and what planning needs
        is part of the smallest budget that fits.
        """
        return 0 if phase in ("baseline", "plan") else self.budget_bytes

    # -- one phase --------------------------------------------------------------------------

    def phase(self, name: str, values: dict[str, Any]) -> dict[str, Any]:
        """Run a phase's worker to its end, starting it again with less when memory runs out.

        Raises:
            EdgeLadderError: what the worker raised; BudgetError after the last restart.
        """
        plan = Plan.from_json(values["plan"]) if "plan" in values else None
        planned = plan.phases.get(name, PhasePlan()) if plan else PhasePlan()
        sizes = planned
        causes: list[str] = []
        self.progress(name, 0, None, "")
        while True:
            with self._limit(name, plan) as limit:
                attempt = Attempt(self, name, {**values, "sizes": sizes.sizes()}, limit)
                outcome, result = attempt.run(planned.planned_peak_bytes)
            if outcome == "done":
                return result
            if outcome == "stop":
                raise Interrupted(
                    f"stopped during {name}; all work so far is saved",
                    where=self.request.run,
                    remedy=f"continue with --resume {self.request.run}"
                    if self.run is not None
                    else "run the same command again",
                )
            causes.append(attempt.cause)
            if plan is not None:
                sizes = policy.shrink(plan, name, replace(sizes, **attempt.sizes))
            self.record(
                {
                    "kind": "restart",
                    "phase": name,
                    "cause": attempt.cause,
                    "attempt": len(causes),
                    "last_step": attempt.last_step,
                    "checkpoint_step": attempt.checkpoint_step,
                    "sizes": sizes.sizes(),
                }
            )
            if len(causes) > self.request.restarts:
                raise self._gave_up(name, causes, attempt)

    def _gave_up(self, name: str, causes: list[str], attempt: Attempt) -> BudgetError:
        peak = self.measured.get(name, 0)
        return BudgetError(
            f"{name} ran out of memory {len(causes)} times within a budget of "
            f"{self.budget_bytes / 1e6:.0f} MB ({'; '.join(dict.fromkeys(causes))}); "
            f"it reached {peak / 1e6:.0f} MB, the last checkpoint is of step "
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
        limit = open_limit(
            self.request.limit,
            policy.worker_limit(
                self.budget_bytes,
                supervisor_bytes=meter.private(os.getpid()),
                file_bytes=baseline.file_bytes if baseline else 0,
            ),
            data_slack_bytes=baseline.data_slack_bytes if baseline else policy.DATA_SLACK_BYTES,
        )
        self.layer = limit.layer
        try:
            yield limit
        finally:
            limit.close()
