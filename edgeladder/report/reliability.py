"""Whether a run's probabilities hold: a diagram, and its numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from edgeladder.core.intervals import interval_text
from edgeladder.report.charts import BOTTOM, LEFT, RIGHT, WIDTH, svg, text
from edgeladder.report.elements import folded, none, percent, table
from edgeladder.report.record import RunRecord


def reliability(record: RunRecord) -> str:
    """How often the most probable class is right, by how probable it is said to be."""
    told = record.evaluation.get("calibration") or {}
    bins = [
        (b["low"], b["high"], b["count"], b.get("confidence"), b.get("accuracy"))
        for b in told.get("bins") or []
    ]
    if not bins:
        return none("probabilities were not judged")
    error = percent(told.get("expected_error"))
    chart = reliability_diagram(
        bins,
        f"accuracy by confidence; expected calibration error {error}; the table has all numbers",
    )
    note = (
        f"<p>Expected calibration error {error}, negative log-likelihood "
        f"{told.get('negative_log_likelihood', math.nan):.3f}. On the dashed line probabilities "
        "hold; below it the classifier is too sure. Larger dots and the bars below: more pictures."
        "</p>"
    )
    numbers = table(
        ("confidence", "pictures", "mean", "right", "95 % interval"),
        [
            (
                f"{percent(low)} to {percent(high)}",
                str(count),
                percent(sure),
                percent(right),
                interval_text(right, count) or "–",
            )
            for low, high, count, sure, right in bins
            if count
        ],
    )
    return chart + note + folded("all ranges", numbers)


Bin = tuple[float, float, int, float | None, float | None]
"""Low and high end, pictures, their mean confidence and their accuracy."""


def reliability_diagram(bins: Sequence[Bin], label: str) -> str:
    """Accuracy over confidence; on the dashed line one is the other, above it it doubts too much.

    The larger a dot, the more pictures; bars below count them.

    Args:
        bins: one a range of the largest probability.
        label: for screen readers.
    """
    total = sum(count for _, _, count, _, _ in bins)
    if not total:
        return '<p class="none">no pictures were judged</p>'
    height, top, bottom, counts = 390.0, 48.0, BOTTOM, 60.0
    low = height - bottom - counts  # where accuracy 0 is
    wide = WIDTH - LEFT - RIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x * wide, low - y * (low - top)

    body = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = place(tick, tick)
        body.append(f'<path class="grid" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>')
        body.append(text(LEFT - 6, y + 4, f"{100 * tick:g}", "end", "tick"))
        anchor = "end" if tick == 1 else "middle"
        body.append(text(x, height - bottom + 22, f"{100 * tick:g}", anchor, "tick"))
    (left, down), (right, up) = place(0, 0), place(1, 1)
    body.append(f'<path class="ideal" d="M{left:.1f} {down:.1f}L{right:.1f} {up:.1f}"/>')
    most = max(count for _, _, count, _, _ in bins)
    points = []
    for start, stop, count, confidence, accuracy in bins:
        if not count or confidence is None or accuracy is None:
            continue
        x, y = place(confidence, accuracy)
        points.append(f"{x:.1f},{y:.1f}")
        tall = (counts - 8) * count / most
        body.append(
            f'<rect class="planned" x="{LEFT + start * wide + 1:.1f}" '
            f'y="{height - bottom - tall:.1f}" width="{(stop - start) * wide - 2:.1f}" '
            f'height="{tall:.1f}"/>'
        )
        radius = 3 + 7 * math.sqrt(count / most)
        said = f"{count} pictures: {100 * confidence:.1f} % sure, {100 * accuracy:.1f} % right"
        body.append(
            f'<circle class="measured" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">'
            f"<title>{escape(said)}</title></circle>"
        )
    body.append(f'<polyline class="line" points="{" ".join(points)}"/>')
    body.append(text(WIDTH - RIGHT, height - 7, "confidence, %", "end", "tick"))
    body.append(text(6, 20, "right, %", "start", "tick"))
    return svg(height, body, label)
