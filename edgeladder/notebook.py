"""Progress in a notebook: a line and a bar a phase, in the output of the cell that waits."""

from __future__ import annotations

import sys
import time
from html import escape
from typing import Any

from edgeladder.core.progress import PhaseState, Progress, duration

_SHOW_SECONDS = 0.25  # between two pictures of it
_STYLE = "font-variant-numeric:tabular-nums;padding:0 12px 0 0;text-align:left;border:0"


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, which shows HTML."""
    interactive = sys.modules.get("IPython")  # a kernel has it loaded; nobody else is asked
    shell = interactive.get_ipython() if interactive is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


class NotebookProgress(Progress):
    """`core.progress.Progress` as a table of HTML that is replaced as phases go on."""

    def __init__(self, display: Any = None) -> None:
        """Args: what shows HTML and takes it anew by `update`; None: IPython's."""
        super().__init__()
        self._display = _new_display() if display is None else display
        self._phases: list[PhaseState] = []
        self._ended: dict[str, float] = {}  # seconds that each phase took
        self._shown = 0.0

    def __exit__(self, kind: object, *_: object) -> None:
        self._show(time.monotonic())

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
        now = time.monotonic()
        if not self._phases or self._phases[-1].phase != phase:
            self._phases = [state for state in self._phases if state.total]
            self._phases.append(PhaseState(phase, now))
        state = self._phases[-1]
        state.take(now, done, total, note)
        state.weigh(used_bytes, budget_bytes)
        self._ended[phase] = now - state.began
        if now - self._shown >= _SHOW_SECONDS or state.finished:
            self._show(now)

    def _show(self, now: float) -> None:
        self._shown = now
        rows = "".join(self._row(state) for state in self._phases)
        self._display.update({"text/html": f"<table>{rows}</table>"}, raw=True)

    def _row(self, state: PhaseState) -> str:
        left = state.left_seconds
        if state.finished:
            memory = state.memory(state.peak_bytes)
            words = [f"in {duration(self._ended[state.phase])}", f"peak {memory}" if memory else ""]
        else:
            remaining = f"{duration(left)} left" if left is not None else ""
            words = [state.speed(), remaining, state.memory(state.used_bytes), state.note]
        bar = f'<progress max="{state.total}" value="{state.done}"></progress>'
        cells = [state.phase, bar if state.total else "", state.count(), *words]
        told = (cell if cell is bar else escape(cell) for cell in cells if cell)
        return "<tr>" + "".join(f'<td style="{_STYLE}">{cell}</td>' for cell in told) + "</tr>"


def _new_display() -> Any:
    from IPython.display import display

    return display({"text/html": ""}, raw=True, display_id=True)
