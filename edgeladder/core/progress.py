"""Progress of a command's phases: one live line on a terminal, plain lines now and then off it.

Always on stderr. Standard library only, and forty lines of drawing in place of a library of it:
the process that shows progress counts inside the budget, where rich would take 2 MB.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, TextIO, TypeVar

from edgeladder.core.printable import one_line
from edgeladder.core.sizes import format_size

QUIET, NORMAL, VERBOSE = -1, 0, 1
Shown = TypeVar("Shown", bound="Progress")

_LINE_SECONDS = 10.0  # between plain lines of one phase
_DRAW_SECONDS = 0.1  # between two drawings of a live line
_RATE_SECONDS = 15.0  # the rate is that of so long
_BAR_WIDTHS = (24, 12, 0)  # the widest for which there is room
_CLOSE, _AT_LIMIT = 0.8, 0.95  # shares of the budget that are shown in yellow, in red
_UNTOLD = ("start", "result", "step", "time", "kind")  # of a line of evidence: shown elsewhere


@dataclass
class PhaseState:
    """How far one phase is, as it was last told."""

    phase: str
    began: float
    done: int = 0
    total: int | None = None
    note: str = ""
    used_bytes: int = 0
    peak_bytes: int = 0
    budget_bytes: int = 0
    _history: deque[tuple[float, int]] = field(default_factory=deque)  # (time, done)

    def take(self, now: float, done: int, total: int | None, note: str) -> None:
        """Take what was told; a count that starts again has a rate of its own."""
        if total != self.total or done < self.done:
            self._history.clear()
        self.done, self.total, self.note = done, total, note
        if self._history and done == self._history[-1][1]:
            return  # being told the same again says nothing of how fast it goes
        self._history.append((now, done))
        while len(self._history) > 2 and now - self._history[0][0] > _RATE_SECONDS:
            self._history.popleft()

    def weigh(self, used_bytes: int, budget_bytes: int) -> None:
        """Take memory of the process tree and the budget it is held against; 0: not known."""
        self.used_bytes, self.budget_bytes = used_bytes, budget_bytes
        self.peak_bytes = max(self.peak_bytes, used_bytes)

    @property
    def finished(self) -> bool:
        """Whether all of a known number is done."""
        return bool(self.total) and self.done >= (self.total or 0)

    @property
    def rate(self) -> float:
        """Done per second, lately; 0 while it cannot be told."""
        if len(self._history) < 2:
            return 0.0
        (first, low), (last, high) = self._history[0], self._history[-1]
        return (high - low) / (last - first) if last > first else 0.0

    @property
    def left_seconds(self) -> float | None:
        """How long the rest will take at this rate; None: not known, or nothing is left."""
        if not self.total or self.finished or not self.rate:
            return None
        return (self.total - self.done) / self.rate

    def count(self) -> str:
        """`12/50`, or what is known of it."""
        return f"{self.done}/{self.total}" if self.total else str(self.done or "")

    def speed(self) -> str:
        """`31/s`, or nothing while it cannot be told."""
        rate = self.rate
        return "" if not rate else f"{rate:.0f}/s" if rate >= 10 else f"{rate:.2g}/s"

    def memory(self, used_bytes: int) -> str:
        """`128 of 160 MB`; nothing where it is not watched."""
        if not used_bytes:
            return ""
        used = format_size(used_bytes)
        if not self.budget_bytes:
            return used
        budget = format_size(self.budget_bytes)
        number, unit = used.split(" ")
        return f"{number if budget.endswith(unit) else used} of {budget}"

    def line(self) -> str:
        """All of it as a plain line."""
        left = self.left_seconds
        parts = [
            f"{self.phase} {self.count()}".rstrip(),
            self.speed() if self.total else "",
            f"{duration(left)} left" if left is not None else "",
            self.memory(self.used_bytes),
            self.note,
        ]
        return ", ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """`45 s`, `3:05` (minutes), `2:10:00` (hours)."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Progress:
    """Call it with a phase, how much of it is done, and out of how much.

    Use it as a context manager, so that a live line is ended before the answer is printed.
    """

    def __init__(self, level: int = NORMAL, stream: TextIO | None = None):
        """Args: QUIET, NORMAL or VERBOSE; where to write, stderr without it."""
        self._stream = sys.stderr if stream is None else stream
        self.level = level
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._colour = self._live and not os.environ.get("NO_COLOR")
        self._state: PhaseState | None = None
        self._drawn = 0.0  # when the live line was; 0: there is none
        self._said: dict[str, tuple[float, str]] = {}  # when a plain line of a phase, and its count

    def __enter__(self: Shown) -> Shown:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._state is not None and self._live:
            self._end(self._state, stopped=kind is not None)
        self._state = None

    def __call__(
        self,
        phase: str,
        done: int = 0,
        total: int | None = None,
        note: str = "",
        used_bytes: int = 0,
        budget_bytes: int = 0,
    ) -> None:
        """Report that `done` of `total` is done in `phase`, and what memory it takes."""
        if self.level <= QUIET:
            return
        now = time.monotonic()
        state = self._state
        if state is None or state.phase != phase:
            if state is not None and self._live:
                self._end(state)
            state = self._state = PhaseState(phase, now)
        state.take(now, done, total, note)
        state.weigh(used_bytes, budget_bytes)
        if self._live:
            self._draw(state, now)
        else:
            self._say(state, now)

    def evidence(self, values: dict[str, Any]) -> None:
        """Say a line of evidence (limits, memory actions, restarts, peaks) to who asked for it."""
        if self.level < VERBOSE or values.get("kind") in _UNTOLD:
            return
        told = (
            f"{key.removesuffix('_bytes').replace('_', ' ')} "
            + (format_size(value) if key.endswith("_bytes") and value else str(value))
            for key, value in values.items()
            if key not in _UNTOLD and not isinstance(value, (list, dict))
        )
        self._clear()
        self._write(one_line(f"{values.get('kind')}: {', '.join(told)}") + "\n")

    def _say(self, state: PhaseState, now: float) -> None:
        said_at, said = self._said.get(state.phase, (-_LINE_SECONDS, ""))
        waits = "" if state.total else state.note  # what is waited for before anything is counted
        news = f"{state.count()} {waits}"
        if state.phase in self._said and news == said:
            return
        if not state.finished and not waits and now - said_at < _LINE_SECONDS:
            return
        self._said[state.phase] = now, news
        self._write(one_line(state.line()) + "\n")

    def _draw(self, state: PhaseState, now: float) -> None:
        if now - self._drawn < _DRAW_SECONDS and not state.finished:
            return
        self._drawn = now
        self._write("\r\x1b[2K" + self._picture(state))

    def _end(self, state: PhaseState, *, stopped: bool = False) -> None:
        """What stays of a phase: its count, time and peak; nothing of one that never counted."""
        self._clear()
        if not state.total and not stopped:
            return
        peak = state.memory(state.peak_bytes)
        parts = [
            f"{state.phase:<11} {state.count()}".rstrip(),
            "stopped" if stopped else "",
            f"in {duration(time.monotonic() - state.began)}",
            f"peak {peak}" if peak else "",
        ]
        self._write("  ".join(one_line(part) for part in parts if part) + "\n")

    def _clear(self) -> None:
        if self._drawn:
            self._write("\r\x1b[2K")
            self._drawn = 0.0

    def _picture(self, state: PhaseState) -> str:
        """The live line, with what there is room for; the rest is left out, the note first."""
        left = state.left_seconds
        memory = state.memory(state.used_bytes)
        words = [
            state.count(),
            state.speed() if state.total else "",
            f"{duration(left)} left" if left is not None else "",
            memory,
            state.note,
        ]
        words = [one_line(word) for word in words if word]
        room = _columns(self._stream) - 1
        name = one_line(f"{state.phase:<11}")[:room]
        while True:
            tail = "  ".join(words)
            for width in _BAR_WIDTHS if state.total else (0,):
                if len(name) + 2 * bool(width) + width + 2 + len(tail) <= room:
                    return self._coloured(state, name, width, tail, memory)
            if not words:
                return name
            words.pop()

    def _coloured(self, state: PhaseState, name: str, width: int, tail: str, memory: str) -> str:
        share = min(1.0, state.done / state.total) if state.total else 0.0
        full, empty = ("━", "─") if _can_encode(self._stream, "━─") else ("#", "-")
        filled = round(share * width)
        bar = [full * filled, empty * (width - filled)]
        if self._colour:
            bar = [f"\x1b[36m{bar[0]}\x1b[0m", f"\x1b[2m{bar[1]}\x1b[0m"]
            used = state.used_bytes / state.budget_bytes if state.budget_bytes else 0.0
            tone = 31 if used > _AT_LIMIT else 33 if used > _CLOSE else 32
            if memory and state.budget_bytes:
                tail = tail.replace(memory, f"\x1b[{tone}m{memory}\x1b[0m")
        return "  ".join([name, *(["".join(bar)] if width else []), tail])

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # whoever read it has gone; the work goes on
            self.level = QUIET


def _columns(stream: TextIO) -> int:
    """Width of the terminal; `COLUMNS` in the environment says it where it cannot be asked."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        text = os.environ.get("COLUMNS", "")
        return int(text) if text.isdigit() and int(text) else 80


def _can_encode(stream: TextIO, text: str) -> bool:
    try:
        text.encode(stream.encoding or "ascii")
    except (LookupError, UnicodeError):
        return False
    return True
