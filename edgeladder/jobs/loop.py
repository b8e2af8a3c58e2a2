"""The training loop: steps, learning rate, averaging, checkpoints, orders from the supervisor.

A run is a function of its configuration: batches come from a sampler with a saved position, and
everything a step reads is in the checkpoint, so a run continued from any checkpoint ends with the
same bits as one that was never interrupted.
"""

from __future__ import annotations

import collections
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np

from edgeladder.budget.policy import CAREFUL_STEPS, halved_chunk
from edgeladder.core.errors import ConfigError
from edgeladder.core.events import CheckpointWritten, ChunkChanged, Progress
from edgeladder.core.trim import release_startup_memory, trim_heap
from edgeladder.jobs.schedule import learning_rate

if TYPE_CHECKING:
    from edgeladder.jobs.checkpoint import Checkpoints, Restored
    from edgeladder.jobs.control import Control
    from edgeladder.runtime.engine.protocol import Engine, StepInputs

_PROGRESS_SECONDS = 0.2
_AVERAGE = "average/"
ROLLBACKS = 3  # of a run whose loss is not finite any more
_ROLLBACK_RATE = 0.5  # of the learning rate, after each


class Diverged(ConfigError):  # noqa: N818 - named for what happened
    """The configured rate is too high for this ladder and these pictures."""


class Batches(Protocol):
    """Where a step's inputs come from; its position is part of the checkpoint."""

    classes: int

    def next(self) -> StepInputs:
        """Inputs of the next step."""

    def state(self) -> dict[str, Any]:
        """The position and random state, as JSON values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a `state()`."""

    def trim(self) -> None:
        """Drop windows and caches that can be read again."""


class Callback(Protocol):
    """Something that is done between steps; its state is part of the checkpoint."""

    name: str

    def before(self, loop: TrainLoop) -> None:
        """Before every step; before the same one again after a resume."""

    def after(self, loop: TrainLoop) -> None:
        """After every step."""

    def finish(self, loop: TrainLoop) -> None:
        """After the last step."""

    def state(self) -> dict[str, Any]:
        """As JSON values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a `state()`."""


@dataclass(frozen=True)
class LoopSettings:
    """Plain numbers from the resolved profile and the plan."""

    steps: int
    batch: int
    learning_rate: float
    warmup_steps: int
    average: float = 0.0
    chunk: int | None = None
    checkpoint_steps: int = 50
    checkpoint_seconds: float = 30.0
    careful: bool = False  # a checkpoint every step from the start: the last worker was killed
    restart_at: int | None = None  # the learning rate begins once more here (fine-tuning)


@dataclass
class LoopResult:
    """What a call of `run` did."""

    outcome: Literal["done", "restart", "stop"]
    step: int
    loss: float
    step_ms_median: float
    images_per_second: float
    chunk: int | None


class TrainLoop:
    """Drives an engine from the checkpoint it finds to the last step."""

    def __init__(
        self,
        engine: Engine,
        batches: Batches,
        settings: LoopSettings,
        checkpoints: Checkpoints,
        record: Callable[[dict[str, Any]], None],
        control: Control,
        callbacks: Sequence[Callback] = (),
    ):
        self.engine = engine
        self.batches = batches
        self.settings = settings
        self.checkpoints = checkpoints
        self.record = record
        self.control = control
        self.callbacks = callbacks
        self.step = 0
        self.loss = math.nan
        self.chunk = settings.chunk
        self.average: dict[str, np.ndarray] | None = None
        self.rate_scale = 1.0  # halved each time the training diverged
        self.rollbacks = 0
        self._restored_step = -1  # that a rollback went to
        self._saved_step = -1
        self._saved_at = time.monotonic()
        self._told_at = 0.0
        self._careful_until = settings.steps if settings.careful else 0
        self._seconds: collections.deque[float] = collections.deque(maxlen=4096)

    def resume(self) -> int | None:
        """Continue from the newest whole checkpoint; its step, or None where there is none.

        Raises:
            IntegrityError: there are checkpoints, none of them whole.
        """
        self.checkpoints.clean()
        found = self.checkpoints.latest()
        if found is None:
            return None
        self._restore(found)
        self.record({"kind": "resume", "step": self.step, "checkpoint": found.tensors.path.name})
        if found.damaged:
            lost = ", ".join(found.damaged)
            self.record({"kind": "damaged_checkpoint", "files": list(found.damaged)})
            self.tell(f"{lost} was damaged: went on from {found.tensors.path.name}")
        return self.step

    def _restore(self, found: Restored) -> None:
        tensors, loop = found.tensors, found.loop
        names = [name for name in tensors if not name.startswith(_AVERAGE)]
        # read one tensor at a time: a whole second copy of the state would not fit the plan
        self.engine.load_state(cast("dict[str, np.ndarray]", tensors.part(names)))
        averaged = [name for name in tensors if name.startswith(_AVERAGE)]
        if averaged:
            self.average = {name[len(_AVERAGE) :]: tensors[name] for name in averaged}
        self.batches.load_state(loop["batches"])
        self.step = self._saved_step = int(loop["step"])
        self.loss = float(loop["loss"])
        for callback in self.callbacks:
            callback.load_state(loop["callbacks"][callback.name])
        self.rate_scale = float(loop.get("rate_scale", 1.0))
        self.rollbacks = int(loop.get("rollbacks", 0))

    def run(self) -> LoopResult:
        """Train until the last step or an order to leave; a checkpoint is written either way.

        Raises:
            Diverged: the loss or a gradient is not finite, at half, a quarter and an eighth of the
                rate too.
            StorageError: the disk is full; the last checkpoint stands.
        """
        if self.settings.average and self.average is None:
            self.average = self.engine.parameters()
        if self.step == 0:
            self.checkpoint()  # what to go back to, should the first steps diverge
        outcome: Literal["done", "restart", "stop"] = "done"
        while self.step < self.settings.steps:
            leave = self._obey()
            if leave:
                outcome = leave
                break
            for callback in self.callbacks:
                callback.before(self)
            if not self._one_step():
                continue
            if len(self._seconds) == 1:
                release_startup_memory()  # code that only the first step runs: opening sessions
            self._checkpoint_when_due()
        if outcome == "done":
            for callback in self.callbacks:
                callback.finish(self)
        self.checkpoint()
        return self._result(outcome)

    def apply_average(self) -> None:
        """Put the averaged weights into the engine, where averaging is on (arXiv:1306.0543)."""
        if self.average is not None:
            self.engine.set_parameters(self.average)

    def checkpoint(self) -> None:
        """Write a checkpoint of this step unless it is already on disk."""
        if self._saved_step == self.step:
            return
        tensors = dict(self.engine.state())
        for name, array in (self.average or {}).items():
            tensors[_AVERAGE + name] = array
        loop = {
            "batches": self.batches.state(),
            "loss": self.loss,
            "rate_scale": self.rate_scale,
            "rollbacks": self.rollbacks,
            "callbacks": {callback.name: callback.state() for callback in self.callbacks},
        }
        path = self.checkpoints.save(self.step, tensors, loop)
        self._saved_step, self._saved_at = self.step, time.monotonic()
        self.record({"kind": "checkpoint", "step": self.step, "file": path.name})
        self.control.tell(CheckpointWritten(step=self.step))

    def _one_step(self) -> bool:
        """One step; False where it diverged, and the loop is back at a checkpoint."""
        settings = self.settings
        rate = self.rate()
        started = time.perf_counter()
        inputs = self.batches.next()
        result = self.engine.step(inputs, rate)
        seconds = time.perf_counter() - started
        if not (math.isfinite(result.loss) and math.isfinite(result.gradient_norm)):
            self._roll_back(f"loss {result.loss}, gradient norm {result.gradient_norm}")
            return False
        self.step += 1
        self.loss = float(result.loss)
        self._seconds.append(seconds)
        for callback in self.callbacks:
            callback.after(self)
        self._update_average()
        self.record(
            {
                "kind": "step",
                "step": self.step,
                "loss": self.loss,
                "gradient_norm": float(result.gradient_norm),
                "learning_rate": rate,
                "seconds": round(seconds, 6),
            }
        )
        now = time.monotonic()
        if now - self._told_at >= _PROGRESS_SECONDS or self.step == settings.steps:
            self._told_at = now
            self.tell()
        return True

    def _roll_back(self, why: str) -> None:
        """Go on from the last good checkpoint at half the rate.

        What this does follows from the checkpoint alone, so a run that is killed meanwhile and
        resumed ends with the same bits.

        Raises:
            Diverged: for the fourth time; engine and disk hold the last good checkpoint.
        """
        at, scale, count = self.step, self.rate_scale, self.rollbacks
        if at == self._restored_step:  # not even a step: what was saved was no good either
            self.checkpoints.forget(at)
        found = self.checkpoints.latest()
        if found is not None:
            self._restore(found)
            self._restored_step = self.step
        self.rate_scale, self.rollbacks = scale * _ROLLBACK_RATE, count + 1
        if found is None or self.rollbacks > ROLLBACKS:
            raise Diverged(
                f"training diverged {self.rollbacks} times: {why}",
                where=f"step {at}",
                remedy="lower the rate, e.g. --set train.learning_rate="
                f"{self.settings.learning_rate / 10:g}; what was learnt until step {self.step} "
                "is kept as the run's adapter",
            )
        self.record({"kind": "rollback", "step": at, "to": self.step, "reason": why,
                     "rate_scale": self.rate_scale})  # fmt: skip
        self.tell(f"diverged at step {at}: back to step {self.step} at half the rate")

    def rate(self) -> float:
        """The learning rate of the next step."""
        settings = self.settings
        first, last = settings.restart_at, settings.steps
        if first is not None and self.step >= first:
            return self.rate_scale * learning_rate(
                self.step - first, last - first, 0, settings.learning_rate
            )
        stop = last if first is None else first
        return self.rate_scale * learning_rate(
            self.step, stop, settings.warmup_steps, settings.learning_rate
        )

    def tell(self, note: str = "") -> None:
        """Tell the supervisor how far training is."""
        steps, loss = self.settings.steps, self.loss
        finite = loss if math.isfinite(loss) else None
        self.control.tell(Progress(step=self.step, steps=steps, loss=finite, note=note))

    def _update_average(self) -> None:
        if self.average is None:
            return
        # the bias-free warm-up of TensorFlow's ExponentialMovingAverage(num_updates)
        decay = np.float32(min(self.settings.average, (1 + self.step) / (10 + self.step)))
        for name, value in self.engine.parameters().items():
            mean = self.average[name]
            mean += (np.float32(1) - decay) * (value - mean)

    def _checkpoint_when_due(self) -> None:
        settings = self.settings
        if (
            self.step < self._careful_until
            or self.step % settings.checkpoint_steps == 0
            or time.monotonic() - self._saved_at >= settings.checkpoint_seconds
        ):
            self.checkpoint()

    def _obey(self) -> Literal["restart", "stop"] | None:
        leave: Literal["restart", "stop"] | None = None
        for order in self.control.take():
            if order == "stop":
                leave = "stop"
            elif order == "restart":
                leave = leave or "restart"
            elif order == "trim":
                self.batches.trim()
                release_startup_memory()
            elif order == "checkpoint":
                self._be_careful()
            elif order == "halve":
                self._be_careful()
                self._halve()
        return leave

    def _be_careful(self) -> None:
        self.checkpoint()
        self._careful_until = self.step + CAREFUL_STEPS

    def _halve(self) -> None:
        smaller = halved_chunk(self.chunk, self.settings.batch, self.batches.classes)
        if smaller == self.chunk:
            return
        self.engine.set_chunk(smaller)
        self.chunk = smaller
        self.batches.trim()
        trim_heap()
        self.record({"kind": "chunk", "step": self.step, "chunk": smaller})
        self.control.tell(ChunkChanged(step=self.step, chunk=smaller))

    def _result(self, outcome: Literal["done", "restart", "stop"]) -> LoopResult:
        seconds = sorted(self._seconds)
        median = seconds[len(seconds) // 2] if seconds else 0.0
        return LoopResult(
            outcome=outcome,
            step=self.step,
            loss=self.loss,
            step_ms_median=round(1000 * median, 3),
            images_per_second=round(self.settings.batch / median, 2) if median else 0.0,
            chunk=self.chunk,
        )
