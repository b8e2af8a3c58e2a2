"""What a worker tells its supervisor while it works: one JSON line an event."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edgeladder.core import errors
from edgeladder.core.errors import BudgetError, EdgeLadderError, IntegrityError
from edgeladder.core.inference import AskedClasses, Prediction
from edgeladder.core.plan import Plan
from edgeladder.core.records import from_json, to_json


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the phase is, in its own steps."""

    step: int
    steps: int | None = None
    note: str = ""
    loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A picture is about to be decoded; empty: none is. Who ends a worker is known by it."""

    path: str


@dataclass(frozen=True, kw_only=True)
class CheckpointWritten:
    """All work up to this step is on disk."""

    step: int


@dataclass(frozen=True, kw_only=True)
class ChunkChanged:
    """The worker made its steps' chunks smaller, because memory was short."""

    step: int
    chunk: int


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a worker that plans its own phase has decided."""

    plan: Plan


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A worker that stays has opened what it needs: questions are answered from now on."""

    classes: int
    asked: AskedClasses | None = None  # None: the classes that the run was trained on


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a worker that stays says of one picture."""

    number: int  # the question's
    prediction: Prediction


@dataclass(frozen=True, kw_only=True)
class HighWater:
    """The kernel's high-water mark of the worker, at its end."""

    bytes: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """The phase is finished; the result as plain JSON values, which the supervisor reads."""

    result: Any


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The phase ended in an error."""

    type: str  # of our errors, or OutOfMemory
    message: str
    where: str | None = None
    remedy: str | None = None
    minimum_budget_bytes: int | None = None

    @classmethod
    def of(cls, error: EdgeLadderError) -> Failed:
        """An error as it crosses the pipe; `error` is its inverse."""
        least = error.minimum_budget_bytes if isinstance(error, BudgetError) else None
        return cls(
            type=type(error).__name__,
            message=error.message,
            where=error.where,
            remedy=error.remedy,
            minimum_budget_bytes=least,
        )

    def error(self) -> EdgeLadderError:
        """The error that the worker met, as its own class again."""
        if self.type == OutOfMemory.__name__:
            return OutOfMemory(self.message)
        kind = getattr(errors, self.type, EdgeLadderError)
        found: EdgeLadderError = kind(self.message, where=self.where, remedy=self.remedy)
        if isinstance(found, BudgetError):
            found.minimum_budget_bytes = self.minimum_budget_bytes
        return found


class OutOfMemory(EdgeLadderError):  # noqa: N818 - named for what happened, as in torch
    """An allocation failed inside a worker: at the kernel's limit, or at the system's."""


Event = (
    Progress
    | Decoding
    | CheckpointWritten
    | ChunkChanged
    | Planned
    | Ready
    | Answered
    | HighWater
    | Done
    | Failed
)
_NAMES: dict[str, type[Event]] = {
    "progress": Progress,
    "decoding": Decoding,
    "checkpoint": CheckpointWritten,
    "chunk": ChunkChanged,
    "planned": Planned,
    "ready": Ready,
    "answered": Answered,
    "high_water": HighWater,
    "done": Done,
    "error": Failed,
}
_KINDS = {kind: name for name, kind in _NAMES.items()}


def write_event(event: Event) -> bytes:
    """One line; `read_event` is its inverse."""
    return (json.dumps({"event": _KINDS[type(event)], **to_json(event)}) + "\n").encode()


def read_event(line: bytes) -> Event | None:
    """The event of a line; None where a library printed something else.

    Raises:
        IntegrityError: an event with other fields than ours.
    """
    try:
        values = json.loads(line)
    except ValueError:
        return None
    if not isinstance(values, dict) or values.get("event") not in _NAMES:
        return None
    kind = _NAMES[values.pop("event")]
    try:
        return from_json(kind, values, where="a worker's pipe")
    except IntegrityError as error:
        error.remedy = "supervisor and worker must be of one edgeladder version"
        raise
