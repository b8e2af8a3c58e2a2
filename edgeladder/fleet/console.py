"""What a person sees of a fleet: tables, a live table on a terminal, plain lines off it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from edgeladder.core.printable import one_line
from edgeladder.core.sizes import format_size
from edgeladder.fleet.outcomes import FleetOutcome, HostResult
from edgeladder.fleet.remote_jobs import Progress

_WIDEST_CELL = 200  # characters; every row is as wide as the widest cell of any box
_LONGEST_WORDS = 2000  # of one message
_LINE_SECONDS = 10.0  # between plain lines about one host


def clean(text: object, most: int | None = None) -> str:
    """A box's words without control characters: they may not steer the terminal.

    Args:
        most: characters; what is longer is cut off.
    """
    said = str(text)
    cut = most is not None and len(said) > most
    return one_line(f"{said[:most]}..." if cut else said)


def grid(header: list[str], rows: Iterable[list[Any]]) -> str:
    """Columns of text, as wide as their widest cell."""
    cells = [
        header,
        *([clean("-" if item is None else item, _WIDEST_CELL) for item in row] for row in rows),
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
    return "\n".join(lines)


def outcome_text(outcome: FleetOutcome, columns: dict[str, Callable[[HostResult], Any]]) -> str:
    """An outcome as a table, and below it each failed host's error with its remedy."""
    rows = [
        [result.host, result.state, *(show(result) for show in columns.values())]
        for result in outcome.results
    ]
    lines = [grid(["host", "state", *columns], rows)]
    for result in outcome.results:
        if result.error:
            lines.append(f"{result.host}: {clean(result.error['message'], _LONGEST_WORDS)}")
            if result.error.get("remedy"):
                lines.append(f"  help: {clean(result.error['remedy'], _LONGEST_WORDS)}")
    return "\n".join(lines)


def fact(name: str) -> Callable[[HostResult], Any]:
    """A column that shows one fact."""
    return lambda result: result.facts.get(name)


def interval(name: str) -> Callable[[HostResult], Any]:
    """A column that shows the two ends of an interval of shares, in percent."""

    def show(result: HostResult) -> str | None:
        value = result.facts.get(name)
        if not isinstance(value, tuple):
            return None
        return " to ".join(f"{100 * end:.1f}" for end in value)

    return show


def size(name: str) -> Callable[[HostResult], Any]:
    """A column that shows a number of bytes."""

    def show(result: HostResult) -> str | None:
        value = result.facts.get(name)
        return format_size(value) if isinstance(value, (int, float)) else None

    return show


def say(text: str) -> None:
    """One line of talk on stderr."""
    print(clean(text, _LONGEST_WORDS), file=sys.stderr, flush=True)


def told(result: HostResult) -> None:
    """One line as a host ends, off a terminal too."""
    reason = f": {result.error['message']}" if result.error else ""
    say(f"{result.host} {result.state}{reason}")


_COLUMNS = ("host", "state", "attempt", "phase", "step", "loss")


def _row(progress: Progress) -> list[str]:
    latest = progress.latest
    loss = latest.get("loss")
    return [
        progress.host,
        progress.state,
        str(progress.attempts or "-"),
        str(latest.get("phase") or latest.get("kind") or "-"),
        str(latest.get("step", "-")),
        f"{loss:.4f}" if isinstance(loss, float) else "-",
    ]


class Watch:
    """Shows the progress of a job on all hosts: a live table, or plain lines now and then."""

    def __init__(self) -> None:
        self._live: Any = None
        self._said: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> Watch:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, known: dict[str, Progress]) -> None:
        """Show the newest state."""
        if self._live is not None:
            from rich.table import Table
            from rich.text import Text

            table = Table(*_COLUMNS)
            for progress in known.values():
                table.add_row(*(Text(clean(cell, _WIDEST_CELL)) for cell in _row(progress)))
            self._live.update(table)
            return
        now = time.monotonic()
        for progress in known.values():
            state, when = self._said.get(progress.host, ("", 0.0))
            if state != progress.state or (not progress.settled and now - when > _LINE_SECONDS):
                self._said[progress.host] = (progress.state, now)
                host, state, attempt, phase, step, loss = _row(progress)
                say(f"{host} {state}, attempt {attempt}, {phase}, step {step}, loss {loss}")
