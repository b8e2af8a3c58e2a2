"""What became of each host: the outcome a fleet command ends with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgeladder.core.errors import EdgeLadderError, FleetError


class HostError(FleetError):
    """One host failed. `kind` says how; `retry`, whether trying again may help.

    Kinds: unreachable, timeout, lost (the connection broke), unpinned, hostkey (changed), login,
    python (the agent could not run), disk, refused (by the agent), job (the command failed),
    integrity (what came is not what was announced).
    """

    def __init__(
        self, message: str, *, kind: str, remedy: str | None = None, where: str | None = None
    ):
        super().__init__(message, where=where, remedy=remedy)
        self.kind = kind

    @property
    def retry(self) -> bool:
        """Whether a new connection may mend it."""
        return self.kind in ("unreachable", "timeout", "lost")

    def to_dict(self) -> dict[str, str | None]:
        """As every error, with its kind."""
        return {**super().to_dict(), "kind": self.kind}


_LONGEST = 500  # of what an exception says of a box's answer
State = Literal["done", "unchanged", "running", "failed"]


@dataclass
class HostResult:
    """One line of the outcome."""

    host: str
    state: State
    facts: dict[str, object] = field(default_factory=dict)  # for its line of the JSON answer
    error: dict[str, str | None] | None = None
    seconds: float = 0.0
    tries: int = 1

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        values: dict[str, object] = {"state": self.state, "seconds": round(self.seconds, 3)}
        if self.tries > 1:
            values["tries"] = self.tries
        if self.error:
            values["error"] = self.error
        return {**values, **self.facts}


@dataclass
class FleetOutcome:
    """Every host's result, in the inventory's order."""

    command: str
    results: list[HostResult]
    facts: dict[str, object] = field(default_factory=dict)
    stopped: str | None = None  # why the command as a whole did not go on

    def names(self, *states: State) -> list[str]:
        """Hosts in one of the states."""
        return [result.host for result in self.results if result.state in states]

    @property
    def failed(self) -> list[str]:
        """Hosts that failed."""
        return self.names("failed")

    def error(self) -> FleetError | None:
        """The error that a command with failed hosts ends with, or None."""
        if not self.failed and self.stopped is None:
            return None
        return FleetError(
            self.stopped
            or f"{len(self.failed)} of {len(self.results)} hosts failed: {', '.join(self.failed)}",
            where=f"fleet {self.command}",
            remedy="mend what their errors say, then run the same command again: it does only "
            "what is missing",
        )

    def to_dict(self) -> dict[str, object]:
        """The command's JSON object."""
        error = self.error()
        values: dict[str, object] = {
            "command": self.command,
            "done": self.names("done"),
            "unchanged": self.names("unchanged"),
            "running": self.names("running"),
            "failed": self.failed,
            **self.facts,
            "hosts": {result.host: result.to_dict() for result in self.results},
        }
        if error:
            values["error"] = error.to_dict()
        return values


def failed(host: str, error: Exception) -> HostResult:
    """The result of a host whose work raised."""
    known = (
        error
        if isinstance(error, EdgeLadderError)
        else HostError(f"{type(error).__name__}: {str(error)[:_LONGEST]}", kind="unexpected")
    )
    return HostResult(host, "failed", error=known.to_dict())
