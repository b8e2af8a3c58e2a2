"""A worker that stays: picture after picture is put to it, and a new one takes its place.

Who asks gets a future at once. A picture that the worker ended on is asked about again while it
has not ended more than so many, and then answered with what happened, never dropped without a
word. The calling process imports no numpy and no onnxruntime, because it counts inside the budget.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from edgeladder.core.errors import EdgeLadderError, Interrupted
from edgeladder.core.events import Answered, Ready
from edgeladder.core.inference import PHASE_OF, InferenceRequest, Prediction, Question
from edgeladder.core.memory_record import MemoryResult
from edgeladder.core.records import to_json
from edgeladder.jobs.inference import InferenceSupervisor
from edgeladder.jobs.interrupts import Interrupts

if TYPE_CHECKING:
    from edgeladder.core.inference import InferenceOrder
    from edgeladder.jobs.attempt import Attempt
    from edgeladder.jobs.child import Child

_IDLE_SECONDS = 0.5  # between two looks at a worker that has nothing to do
_BUSY_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 30.0  # before another start, after many in a row
_STRIKES = 2  # ends of workers without an answer between, before the next one gets less memory

State = Literal["starting", "ready", "ended"]


class BusyError(Exception):
    """As many pictures wait as may."""


class WorkerEndedError(Exception):
    """The worker ended while it looked at this picture; the message says why."""


@dataclass(frozen=True, kw_only=True)
class ServiceUse:
    """How a service stands."""

    state: State
    waiting: int  # pictures, the one that is looked at included
    answered: int
    restarts: int  # of the worker
    used_bytes: int  # of the process tree
    budget_bytes: int


@dataclass(eq=False)
class _Asked:
    """A picture that waits for its answer."""

    question: Question
    future: Future[Prediction]
    ends: int = 0  # workers that ended on it


class Service:
    """One picture at a time through a worker under the budget, for as long as it is wanted."""

    def __init__(
        self,
        request: InferenceRequest,
        *,
        most_waiting: int = 8,
        picture_seconds: float = 60.0,
        ends: int = 1,
        reserve_bytes: int = 0,
        log: Callable[[str], None] = lambda line: None,
    ):
        """Nothing is started yet.

        Args:
            request: of the command `serve`.
            most_waiting: pictures, the one that is looked at included; more are refused.
            picture_seconds: after which the worker is ended over a picture.
            ends: workers that may end on a picture before it is given up.
            reserve_bytes: of the budget for what the caller will yet take.
            log: told of restarts, a line each.
        """
        self._interrupts = Interrupts()  # never entered: whoever owns the process has its signals
        self._supervisor = InferenceSupervisor(request, self._interrupts, None, self._record)
        self._request = request
        self._phase = PHASE_OF[request.command]
        self._most_waiting = most_waiting
        self._picture_seconds = picture_seconds
        self._ends = ends
        self._reserve_bytes = reserve_bytes
        self._log = log
        self._numbers = itertools.count(1)
        self._lock = threading.Condition()
        self._waiting: deque[_Asked] = deque()
        self._current: _Asked | None = None
        self._since = 0.0
        self._overdue = False
        self._child: Child | None = None
        self._attempt: Attempt | None = None
        self._state: State = "starting"
        self._closing = False
        self._ready: Ready | None = None
        self._error: Exception | None = None
        self._answered = self._restarts = 0
        self._answered_before = 0  # when this worker started
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)

    def start(self) -> Ready:
        """Start the worker and wait until it answers.

        Raises:
            ConfigError, IntegrityError: there is no such run, or it cannot be used.
            BudgetError: nothing fits.
            Interrupted: `close` was called meanwhile.
        """
        self._thread.start()
        with self._lock:
            self._lock.wait_for(lambda: self._ready is not None or self._state == "ended")
            if self._ready is None:
                raise self._error or Interrupted("stopped during the start")
            return self._ready

    def submit(self, path: str, top: int = 1) -> Future[Prediction]:
        """Put a picture's file to the worker.

        Returns:
            Its prediction, with `error` where it cannot be read; raises `WorkerEndedError`.

        Raises:
            BusyError: too many wait.
            Interrupted: the service has been closed.
            EdgeLadderError: it ended by itself, and this is why.
        """
        with self._lock:
            if self._closing or self._state == "ended":
                raise self._error or Interrupted("the service has been closed")
            if len(self._waiting) + (self._current is not None) >= self._most_waiting:
                raise BusyError(f"{self._most_waiting} pictures wait already")
            question = Question(number=next(self._numbers), path=path, top=top)
            asked = _Asked(question, Future())
            self._waiting.append(asked)
            self._send_next()
            return asked.future

    @property
    def top(self) -> int:
        """Labels a picture, as the request has them."""
        return self._request.top

    @property
    def is_ready(self) -> bool:
        """Whether `start` has returned."""
        return self._ready is not None

    def use(self) -> ServiceUse:
        """How it stands now."""
        attempt = self._attempt
        with self._lock:
            return ServiceUse(
                state=self._state,
                waiting=len(self._waiting) + (self._current is not None),
                answered=self._answered,
                restarts=self._restarts,
                used_bytes=attempt.used_bytes if attempt is not None else 0,
                budget_bytes=self._supervisor.enforced_bytes(self._phase),
            )

    def memory(self) -> MemoryResult:
        """Planned against measured peak, of all workers so far."""
        plan = self._attempt.plan if self._attempt is not None else None
        return self._supervisor.memory(plan, self._phase)

    def close(self, drain_seconds: float = 0.0) -> None:
        """Answer what waits, for so long at most, and end the worker. Safe to call again."""
        with self._lock:
            self._closing = True
            self._lock.wait_for(
                lambda: self._state == "ended" or not (self._waiting or self._current),
                drain_seconds,
            )
            self._interrupts.came = True
            if self._child is not None:
                self._child.order("stop")
            self._lock.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def stop_soon(self) -> None:
        """End without waiting for it: all that a signal handler may do."""
        self._interrupts.came = True

    def told(self, event: Ready | Answered) -> None:
        """The worker is ready, or has an answer (called by the watching thread)."""
        with self._lock:
            if isinstance(event, Ready):
                self._ready, self._state = event, "ready"
                self._lock.notify_all()
            elif self._current is not None and self._current.question.number == event.number:
                asked, self._current = self._current, None
                self._answered += 1
                if not asked.future.cancelled():
                    asked.future.set_result(event.prediction)
                self._lock.notify_all()
            self._send_next()

    def between(self, attempt: Attempt) -> float:
        """Take hold of a new worker; end one that takes too long over a picture."""
        with self._lock:
            if self._child is not attempt.child:
                self._child, self._attempt = attempt.child, attempt
                self._send_next()
            if self._current is None and self._state == "ready":
                return _IDLE_SECONDS
            late = time.monotonic() - self._since > self._picture_seconds
            if self._current is not None and late and not self._overdue:
                self._overdue = True
                attempt.child.kill()
            return _BUSY_SECONDS

    def _send_next(self) -> None:
        """With the lock held: the next picture, where the worker is free."""
        while self._waiting and self._current is None and self._state == "ready" and self._child:
            asked = self._waiting.popleft()
            if not asked.ends and not asked.future.set_running_or_notify_cancel():
                continue  # who asked has gone
            self._current, self._since, self._overdue = asked, time.monotonic(), False
            self._child.order(_line(asked.question))

    def _run(self) -> None:
        """Workers one after the other, until told to stop or nothing helps."""
        error: Exception | None = None
        try:
            order = self._supervisor.order(self._reserve_bytes)
            failures: list[str] = []
            while not self._interrupts.came:
                order, failures = self._one_life(order, failures)
        except Interrupted:
            pass
        except Exception as failure:  # whoever asks is told
            error = failure
        with self._lock:
            self._state, self._error = "ended", error
            self._child = None
            left = [asked for asked in (self._current, *self._waiting) if asked is not None]
            self._current = None
            self._waiting.clear()
            for asked in left:
                _fail(asked, error or Interrupted("the service has been closed"))
            self._lock.notify_all()

    def _one_life(
        self, order: InferenceOrder, failures: list[str]
    ) -> tuple[InferenceOrder, list[str]]:
        """One worker to its end; what the next one is told, and why the last ones ended in vain.

        Raises:
            Interrupted: told to stop.
            EdgeLadderError: no worker gets ready.
        """
        self._answered_before = self._answered
        attempt: Attempt | None = None
        try:
            attempt, _ = self._supervisor.attempt(self._phase, order, self)
            cause = attempt.cause
        except Interrupted:
            raise
        except EdgeLadderError as error:
            if self._ready is None or len(failures) >= self._request.restarts:
                raise
            cause = error.message
        with self._lock:
            was_ready = self._state == "ready"
            self._state, self._child = "starting", None
            self._restarts += 1
            if self._overdue:
                cause = f"took longer than {self._picture_seconds:g} s over a picture"
            self._give_back(cause)
            in_vain = self._answered == self._answered_before
        self._log(f"the worker ended ({cause}); another one is started")
        failures = [*failures, cause] if in_vain else []
        if attempt is not None and not was_ready and len(failures) > self._request.restarts:
            raise self._supervisor.gave_up(attempt, failures)
        if attempt is not None and (not was_ready or len(failures) >= _STRIKES):
            order = self._supervisor.shrunk(order, self._phase, attempt)
        if len(failures) > 1:
            self._pause(min(_LONGEST_PAUSE_SECONDS, 2.0 ** (len(failures) - 2)))
        return order, failures

    def _give_back(self, cause: str) -> None:
        """With the lock held: the picture that a worker ended on, to the queue or who asked."""
        asked, self._current = self._current, None
        if asked is None:
            return
        asked.ends += 1
        if asked.ends < self._ends and not self._overdue:
            self._waiting.appendleft(asked)
        else:
            _fail(asked, WorkerEndedError(cause))
        self._overdue = False
        self._lock.notify_all()

    def _pause(self, seconds: float) -> None:
        with self._lock:
            self._lock.wait_for(lambda: self._interrupts.came, seconds)

    def _record(self, values: dict[str, Any]) -> None:
        if values.get("kind") == "memory" and values.get("action") in ("restart", "kill"):
            self._log(f"memory: {values['reason']}, {values['used_bytes'] / 1e6:.0f} MB used")


def _line(question: Question) -> str:
    import json

    return json.dumps(to_json(question))


def _fail(asked: _Asked, error: Exception) -> None:
    if not asked.future.cancelled():
        asked.future.set_exception(error)


def serving(request: InferenceRequest, **changes: Any) -> InferenceRequest:
    """The request as the serve worker has it."""
    return replace(request, command="serve", **changes)
