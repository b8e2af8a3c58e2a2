"""Memory over time as one chart: each phase's tree, the budget, and what the watch did when."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from edgeladder.core.sizes import format_size
from edgeladder.report.charts import BOTTOM, LEFT, RIGHT, WIDTH, below, nice_ticks, svg, text
from edgeladder.report.record import RunRecord, memory_of

_HEIGHT, _TOP = 280.0, 34.0
_MB = 1e6

Point = tuple[float, float]  # seconds since 1970, bytes


def memory_over_time(record: RunRecord) -> str:
    """The chart, or that nothing was recorded."""
    series = [(str(p.get("phase")), points) for p in record.phases if (points := _points(p))]
    if not series:
        return '<p class="none">memory over time was not recorded</p>'
    budget = memory_of(record).get("budget_bytes")
    budget = float(budget) if isinstance(budget, int | float) and budget > 0 else None
    start = min(points[0][0] for _, points in series)
    end = max(points[-1][0] for _, points in series)
    high = 1.05 * max(budget or 0.0, *(used for _, points in series for _, used in points))
    chart = _Chart(start, max(end, start + 1e-3), high)
    for name, points in series:
        chart.phase(name, points)
    if budget:
        chart.budget(budget)
    for action in record.events:
        if action.get("kind") == "memory":
            chart.action(action)
    words = (
        "all processes together, the highest of each short span; dots: what the watch did"
        if chart.actions
        else "all processes together, the highest of each short span; the watch had nothing to do"
    )
    return chart.svg() + f'<p class="legend">{words}</p>'


def _points(phase: dict[str, Any]) -> list[Point]:
    told = phase.get("memory")
    if not isinstance(told, dict):
        return []
    began, span, used = told.get("began"), told.get("span_seconds"), told.get("used_bytes")
    if not (isinstance(began, int | float) and isinstance(span, int | float)):
        return []
    if not isinstance(used, list) or not (math.isfinite(began) and math.isfinite(span)):
        return []
    return [
        (began + k * span, float(size))
        for k, size in enumerate(used)
        if isinstance(size, int | float) and math.isfinite(size)
    ]


class _Chart:
    """Axes of seconds and MB, and what is drawn in them."""

    def __init__(self, start: float, end: float, high: float):
        self._start, self._end, self._high = start, end, high
        self.actions = 0
        self._body: list[str] = []
        for tick in nice_ticks(0.0, high / _MB):
            y = self._y(tick * _MB)
            self._body.append(f'<path class="grid" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>')
            self._text(LEFT - 6, y + 4, f"{tick:g}", "end")
        for tick in nice_ticks(0.0, end - start, 6):
            x = self._x(start + tick)
            self._text(x, _HEIGHT - BOTTOM + 22, f"{tick:g}", below(x))
        self._text(WIDTH - RIGHT, _HEIGHT - 7, "seconds", "end")
        self._text(LEFT - 6, 20, "MB", "end")

    def _x(self, time: float) -> float:
        share = (time - self._start) / (self._end - self._start)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def _y(self, size: float) -> float:
        return _TOP + (1 - size / self._high) * (_HEIGHT - _TOP - BOTTOM)

    def _text(self, x: float, y: float, words: str, anchor: str, kind: str = "tick") -> None:
        self._body.append(text(x, y, words, anchor, kind))

    def phase(self, name: str, points: Sequence[Point]) -> None:
        """A phase's curve, its name where there is room for it."""
        path = " ".join(f"{self._x(time):.1f},{self._y(used):.1f}" for time, used in points)
        self._body.append(
            f'<polyline class="line" points="{path}"><title>{escape(name)}</title></polyline>'
        )
        first, last = self._x(points[0][0]), self._x(points[-1][0])
        self._body.append(f'<path class="grid" d="M{first:.1f} {_TOP:g}V{_HEIGHT - BOTTOM:g}"/>')
        if last - first > 14.0 * len(name):
            self._text((first + last) / 2, _HEIGHT - BOTTOM - 6, name, "middle")

    def budget(self, size: float) -> None:
        """The line that is never crossed."""
        y = self._y(size)
        self._body.append(f'<path class="budget" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>')
        words = f"budget {format_size(size)}"
        self._text(LEFT + 4, y - 5, words, "start", "budget-text")  # in sight on a phone

    def action(self, action: dict[str, Any]) -> None:
        """A dot where the watch did something."""
        time, used = action.get("time"), action.get("used_bytes")
        if not (isinstance(time, int | float) and isinstance(used, int | float)):
            return
        if not self._start <= time <= self._end + 1:
            return
        self.actions += 1
        words = f"{action.get('action')}: {action.get('reason')}, {format_size(used)}"
        y = self._y(min(used, self._high))
        self._body.append(
            f'<circle class="miss" cx="{self._x(min(time, self._end)):.1f}" cy="{y:.1f}" r="4">'
            f"<title>{escape(words)}</title></circle>"
        )

    def svg(self) -> str:
        """The drawing."""
        return svg(_HEIGHT, self._body, "memory over time")
