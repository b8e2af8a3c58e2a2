"""What to do as memory grows towards the budget (contract 4, step 3).

Lines as shares of the budget, after Dask's worker memory manager:

    70 %  drop windows and trim the heap
    80 %  checkpoint, and halve the chunk (chunking is exact, so results stay)
    90 %  checkpoint and restart the worker
    95 %  stop it at once

A plan may fill the budget up to the 90 % line on purpose. Where it does, usage up to the plan's
own prediction is no pressure, and the 80 % action waits until usage passes the prediction too.
Pressure from other processes (little MemAvailable, or PSI's stalls) is answered as the 80 % line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeladder.budget.policy import (
    AVAILABLE_SHARE,
    CLOSE_SHARE,
    EXPECTED_MARGIN,
    RESTART_SHARE,
    SHRINK_SHARE,
    STALL_PERCENT,
    STOP_SHARE,
    TRIM_SHARE,
)

_AGAIN_SECONDS = {"trim": 2.0, "checkpoint": 0.5, "halve": 3.0, "restart": 5.0}


@dataclass(frozen=True)
class Action:
    """An order for the worker, and why."""

    order: str  # trim, checkpoint, halve, restart or kill
    reason: str
    used_bytes: int


@dataclass
class Watchdog:
    """Turns measurements into actions; remembers when it last asked for each."""

    budget_bytes: int
    expected_bytes: int = 0  # the plan's peak of this phase
    total_bytes: int = 0  # of the machine; 0: do not look at other processes
    shrinkable: bool = True  # whether a smaller chunk is left
    _asked: dict[str, float] = field(default_factory=dict)

    def line(self, share: float) -> int:
        """Bytes at a share of the budget."""
        return int(share * self.budget_bytes)

    def watch_closely(self, used_bytes: int) -> bool:
        """Whether usage is near enough to a line to measure often and exactly."""
        return used_bytes > self.line(CLOSE_SHARE)

    def observe(
        self, used_bytes: int, now: float, *, available_bytes: int | None = None, stall: float = 0.0
    ) -> Action | None:
        """The action a measurement calls for, if any.

        Args:
            used_bytes: of the whole tree.
            now: seconds of a monotonic clock.
            available_bytes: of the machine (MemAvailable).
            stall: PSI `full avg10`, percent.
        """
        expected = self.expected_bytes * EXPECTED_MARGIN
        if used_bytes >= self.line(STOP_SHARE):
            return Action("kill", "95 % of the budget", used_bytes)
        if used_bytes >= self.line(RESTART_SHARE):
            return self._ask("restart", "90 % of the budget", used_bytes, now)
        if used_bytes >= max(self.line(SHRINK_SHARE), expected):
            order = "halve" if self.shrinkable else "checkpoint"
            return self._ask(order, "80 % of the budget", used_bytes, now) or self._ask(
                "checkpoint", "80 % of the budget", used_bytes, now
            )
        short = (
            available_bytes is not None
            and self.total_bytes > 0
            and available_bytes < AVAILABLE_SHARE * self.total_bytes
        )
        if short or stall >= STALL_PERCENT:
            reason = "other processes: " + (
                "little memory available" if short else f"{stall:.0f} % of time stalled"
            )
            order = "halve" if self.shrinkable else "checkpoint"
            return self._ask(order, reason, used_bytes, now)
        if used_bytes >= max(self.line(TRIM_SHARE), expected):
            return self._ask("trim", "70 % of the budget", used_bytes, now)
        return None

    def _ask(self, order: str, reason: str, used_bytes: int, now: float) -> Action | None:
        last = self._asked.get(order)
        if last is not None and now - last < _AGAIN_SECONDS[order]:
            return None
        self._asked[order] = now
        return Action(order, reason, used_bytes)
