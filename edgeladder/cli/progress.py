"""Progress: a bar on a terminal, one plain line now and then off it; always on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

from edgeladder.core.printable import one_line

_LINE_SECONDS = 10.0  # between plain lines of one phase


class Progress:
    """Call it with a phase, how much of it is done, and out of how much.

    Use it as a context manager, so that a bar is taken down before the answer is printed.
    """

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __call__(self, phase: str, done: int = 0, total: int | None = None, note: str = "") -> None:
        """Report that `done` of `total` is done in `phase`."""
        if self._terminal:
            self._draw(phase, done, total, note)
        else:
            self._say(phase, done, total, note)

    def _draw(self, phase: str, done: int, total: int | None, note: str) -> None:
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description:<12}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=Console(stderr=True),
            )
            self._bar.start()
        if phase not in self._tasks:
            for task in self._bar.tasks:  # a phase that never counted is over without a mark
                if task.total is None:
                    self._bar.update(task.id, visible=False)
            self._tasks[phase] = self._bar.add_task(phase, total=total, note=note)
        self._bar.update(self._tasks[phase], completed=done, total=total, note=one_line(note))

    def _say(self, phase: str, done: int, total: int | None, note: str) -> None:
        now = time.monotonic()
        # done, or what is waited for before anything is counted
        finished = (total is not None and done >= total) or (not total and bool(note))
        if not finished and now - self._last.get(phase, -_LINE_SECONDS) < _LINE_SECONDS:
            return
        self._last[phase] = now
        count = f" {done}/{total}" if total else (f" {done}" if done else "")
        line = f"{phase}{count}{' ' + note if note else ''}"
        print(one_line(line), file=sys.stderr, flush=True)
