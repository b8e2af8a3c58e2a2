"""One life of a phase's worker: watch it, answer memory pressure, judge how it ended."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from edgeladder.budget import kernel_marks, meter
from edgeladder.budget.policy import EXACT_SHARE, STREAMED_PHASES
from edgeladder.budget.watchdog import Action, Watchdog
from edgeladder.core.errors import EdgeLadderError, Interrupted
from edgeladder.core.events import (
    Answered,
    CheckpointWritten,
    ChunkChanged,
    Decoding,
    Done,
    Event,
    Failed,
    HighWater,
    OutOfMemory,
    Planned,
    Progress,
    Ready,
)
from edgeladder.core.memory_record import MemoryAction
from edgeladder.core.records import to_json
from edgeladder.jobs.blame import DECODER_FAULTS
from edgeladder.jobs.child import Child
from edgeladder.jobs.control import RESTART_CODE
from edgeladder.jobs.memory_series import MemorySeries
from edgeladder.jobs.worker_log import WorkerLog

if TYPE_CHECKING:
    from edgeladder.budget.limits import MemoryLimit
    from edgeladder.core.orders import Order
    from edgeladder.core.plan import Plan
    from edgeladder.jobs.run_directory import RunDirectory

_CALM_SECONDS, _CLOSE_SECONDS = 0.05, 0.005  # between two measurements
_WATCH_SHARE = 20  # waits at least so many times as long as a measurement took: 5 % of a core
_EXACT_SECONDS, _EXACT_BYTES = 0.25, 1_000_000  # an exact measurement holds so long, or so far
_SURROUNDINGS_SECONDS = 0.5  # between two looks at the rest of the machine
_STOP_GRACE_SECONDS = 60.0  # for a checkpoint after an order to leave
_TELL_SECONDS = 0.5  # between two words about memory, where no work was told of


# of what memory pressure leaves nothing smaller to do than to start again
_NOT_SHRINKABLE = (*STREAMED_PHASES, "pseudo_label", "evaluate")


class Watcher(Protocol):
    """Who an attempt is made for: asked what holds, told what happens."""

    run: RunDirectory | None
    progress: Callable[..., None]  # (phase, done, total, note, used_bytes, budget_bytes)
    measured: dict[str, int]  # highest peak of each phase
    actions: list[MemoryAction]
    gpu_before: int | None

    @property
    def interrupted(self) -> bool:
        """Whether a signal to stop has come."""

    @property
    def where(self) -> str | None:
        """The run that errors name."""

    def enforced_bytes(self, phase: str) -> int:
        """The budget that a phase runs under; 0: none."""

    def record(self, values: dict[str, Any]) -> None:
        """Keep a line of evidence."""


class Listener(Protocol):
    """Who talks with a worker that stays."""

    def told(self, event: Ready | Answered) -> None:
        """Something came from the worker."""

    def between(self, attempt: Attempt) -> float:
        """Called between two looks at the worker; seconds until the next one, at most."""


class Attempt:
    """One life of a phase's worker."""

    def __init__(
        self,
        supervisor: Watcher,
        phase: str,
        order: Order,
        limit: MemoryLimit,
        listener: Listener | None = None,
    ) -> None:
        self.supervisor = supervisor
        self.phase = phase
        self.limit = limit
        self.used_bytes = 0  # of the tree, as last measured
        self._listener = listener
        self.cause = ""
        self.picture = ""  # whose decoding memory ran out in
        self._decoding = ""
        self.last_step = 0
        self.checkpoint_step = 0
        self.plan: Plan | None = None  # where the worker plans its own phase
        self.chunk: int | None = None  # that the worker went down to by itself
        run = supervisor.run
        kept = run is not None and run.folder.is_dir()
        self._log = WorkerLog(run.log if run is not None and kept else None, phase)
        self._log.begins(order, limit)
        lock = run.lock_descriptor if run is not None else None
        self.child = Child(phase, order, limit, self._log if kept else None, lock)
        self._outcome: str | None = None
        self._result: Any = None  # plain values, read by the supervisor
        self._error: EdgeLadderError | None = None
        self._told_stop_at = 0.0
        # GPU bytes are asked for where the machine has a GPU that takes them out of RAM
        self._meter = meter.TreeMeter(os.getpid(), gpu_before=supervisor.gpu_before)
        self._peak = 0  # by exact samples
        self._cheap_peak = 0  # the resident sum at the highest of them
        self._exact: meter.Usage | None = None
        self._exact_at = 0.0
        self._killed_for = ""
        self._held: str | None = None  # at which of the kernel's counters a process was killed
        self._series = MemorySeries()
        self._told = Progress(step=0)
        self._told_at = 0.0

    def run(self, expected_bytes: int) -> tuple[str, Any]:
        """Watch until the worker ends: `done` with its result, `again`, or `stop`."""
        try:
            self._watch(expected_bytes)
        except BaseException as error:
            self.child.kill()
            self.child.end()
            self._log.ends(f"left by {type(error).__name__}", self._peak, self.last_step)
            raise
        code = self.child.end()
        self._keep_peak()
        how, peak = "refused", self.supervisor.measured[self.phase]
        try:
            how, result = self._judge(code)
            return how, result
        except EdgeLadderError as error:
            how = str(error)
            raise
        finally:
            told = f"{how} ({self.cause})" if self.cause else how
            self._log.ends(told, peak, self.last_step)

    def _watch(self, expected_bytes: int) -> None:
        supervisor, child = self.supervisor, self.child
        budget = supervisor.enforced_bytes(self.phase)
        guard = None
        if budget:
            shrinkable = self.phase not in _NOT_SHRINKABLE
            guard = Watchdog(budget, expected_bytes, meter.total_bytes(), shrinkable)
        surroundings_at, available, stall = 0.0, None, 0.0
        confirmed = self.limit.layer == "none"
        wait = _CLOSE_SECONDS
        while True:
            events = child.events(wait)
            if events is None:
                return
            for event in events:
                self._take(event)
            if guard is not None and self.plan is not None:
                guard.expected_bytes = self.plan.phases[self.phase].planned_peak_bytes
            began = time.monotonic()
            child.mark()
            used = self.used_bytes = self._measure(guard)
            if not confirmed:
                confirmed = self._confirm()
            now = time.monotonic()
            self._series.add(now, used)
            self._tell(used, budget, now, any(isinstance(event, Progress) for event in events))
            if supervisor.interrupted and not self._told_stop_at:
                self._told_stop_at = now
                child.order("stop")
            if self._told_stop_at and now - self._told_stop_at > _STOP_GRACE_SECONDS:
                child.kill()
            calm = self._listener.between(self) if self._listener else _CALM_SECONDS
            if guard is None:
                wait = calm
                continue
            if now - surroundings_at > _SURROUNDINGS_SECONDS:
                surroundings_at = now
                available, stall = meter.available_bytes(), kernel_marks.pressure()
            action = guard.observe(used, now, available_bytes=available, stall=stall)
            if action is not None:
                self._act(action)
            wait = _CLOSE_SECONDS if guard.watch_closely(used) else calm
            wait = max(wait, _WATCH_SHARE * (now - began - self._meter.walk_seconds))

    def _measure(self, guard: Watchdog | None) -> int:
        """The tree's memory now; exact near the lines that matter and at every new height.

        An exact measurement makes the kernel walk the page tables, a millisecond or more that the
        worker's threads wait for on few cores. What has changed since the last one is told well
        enough by the cheap sum, for a moment or a megabyte.
        """
        above = self._cheap_peak
        if guard is not None:
            above = min(above, guard.line(EXACT_SHARE))
        known, now = self._exact, time.monotonic()
        if known is not None and now - self._exact_at < _EXACT_SECONDS:
            cheap = self._meter.read(pss_above=None)
            grown = cheap.bytes - known.resident_bytes
            if grown < _EXACT_BYTES:
                return known.bytes + grown
        usage = self._meter.read(pss_above=above)
        if usage.exact:
            self._exact, self._exact_at = usage, now
            self._cheap_peak = max(self._cheap_peak, usage.resident_bytes)
            self._peak = max(self._peak, usage.bytes)
        return usage.bytes

    def _confirm(self) -> bool:
        limit = self.limit.confirm(self.child.pid)
        if limit is None:
            return False
        self.supervisor.record(
            {"kind": "limit", "phase": self.phase, **self.limit.to_dict(), "confirmed": limit}
        )
        return True

    def _act(self, action: Action) -> None:
        record = MemoryAction(
            kind="memory",
            phase=self.phase,
            action=action.order,
            reason=action.reason,
            used_bytes=action.used_bytes,
            step=self.last_step,
        )
        self.supervisor.record(to_json(record))
        self._log.line(f"{action.order} at {action.reason}, {action.used_bytes / 1e6:.0f} MB used")
        if len(self.supervisor.actions) < 100:
            self.supervisor.actions.append(record)
        if action.order == "kill":
            self._killed_for = f"stopped at {action.reason}"
            self.child.kill()
        else:
            self.child.order(action.order)

    def _take(self, event: Event) -> None:
        if isinstance(event, Done):
            self._outcome, self._result = "done", event.result
        elif isinstance(event, Failed):
            self._error = event.error()
        elif isinstance(event, Planned):
            self.plan = event.plan
        elif isinstance(event, Decoding):
            self._decoding = event.path
        elif isinstance(event, (Ready, Answered)):
            if self._listener is not None:
                self._listener.told(event)
        elif isinstance(event, HighWater):
            self.child.high_water = max(self.child.high_water, event.bytes)
        elif isinstance(event, CheckpointWritten):
            self.checkpoint_step = event.step
        elif isinstance(event, ChunkChanged):
            self.chunk = event.chunk
        elif isinstance(event, Progress):
            self.last_step, self._told = event.step, event

    def _tell(self, used_bytes: int, budget_bytes: int, now: float, news: bool) -> None:
        """Say how far the work is and what memory it takes: at news, and now and then."""
        if not news and now - self._told_at < _TELL_SECONDS:
            return
        self._told_at = now
        told = self._told
        note = told.note or (f"loss {told.loss:.4g}" if told.loss is not None else "")
        self.supervisor.progress(self.phase, told.step, told.steps, note, used_bytes, budget_bytes)

    def reached(self) -> str:
        """What ended this life, in words: which counter, and how much by it.

        The sampled sum splits pages that processes share between them, as the kernel's own counter
        counts each once; a sum of high-water marks would count them once per process.
        """
        sampled = f"the tree's sampled proportional size was at most {self._peak / 1e6:.1f} MB"
        return f"{self._held}; {sampled}" if self._held else sampled

    @property
    def sampled_peak_bytes(self) -> int:
        """The highest exact sample of the tree: shared pages split between who shares them."""
        return self._peak

    def _keep_peak(self) -> None:
        """The phase's peak: the highest sample, or the kernel's mark plus our own memory."""
        self._held = self.limit.held() if self.limit.kills() else None
        own = meter.private(os.getpid())
        peak = max(self._peak, self.child.high_water + own)
        measured = self.supervisor.measured
        measured[self.phase] = max(measured.get(self.phase, 0), peak)
        budget = self.supervisor.enforced_bytes(self.phase)
        self._tell(peak, budget, time.monotonic(), True)  # what the samples missed
        self.supervisor.record(
            {
                "kind": "phase",
                "phase": self.phase,
                "measured_peak_bytes": peak,
                "sampled_peak_bytes": self._peak,
                "worker_high_water_bytes": self.child.high_water,
                "supervisor_bytes": own,
                "limit_peak_bytes": self.limit.peak_bytes(),
                "limit_kills": self.limit.kills(),
                "memory": self._series.to_json(),
            }
        )

    def _judge(self, code: int) -> tuple[str, Any]:
        if self._outcome == "done" and code == 0:
            return "done", self._result
        if code == Interrupted.exit_code or self._told_stop_at:
            return "stop", None
        if code == RESTART_CODE:
            self.cause = "restarted at 90 % of the budget"
            return "again", None
        self.picture = self._decoding
        if isinstance(self._error, OutOfMemory):
            self.cause = f"an allocation failed: {self._error.message}"
            return "again", None
        if self._error is not None:
            raise self._error
        if self._killed_for:
            self.cause = self._killed_for
            return "again", None
        if code == -signal.SIGKILL:
            self.cause = (
                f"killed by the {self.limit.layer} limit"
                if self.limit.kills()
                else "killed from outside, by the system's memory killer or by hand"
            )
            return "again", None
        if self.picture and -code in DECODER_FAULTS:
            self.cause = f"ended by {signal.Signals(-code).name} while it decoded a picture"
            return "again", None
        raise EdgeLadderError(
            f"the {self.phase} worker ended with code {code}: "
            + (self.child.tail().splitlines() or ["no message"])[-1],
            where=self.supervisor.where,
            remedy="see worker.log in the run's folder"
            if self.supervisor.run is not None
            else "run it again with EDGELADDER_TRACEBACK=1 in the environment to see more",
        )
