"""Charts as inline SVG, bars as HTML: they fit the page, follow its colours and need nothing else.

Colours are CSS variables of the page (`--accent`, `--muted`, ...), so one drawing serves light and
dark. All numbers are also in the page's tables; a chart adds the picture, not the data.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH = 640.0
LEFT, RIGHT, BOTTOM = 72.0, 12.0, 58.0  # room for a phone's larger letters, see `style`
_CURVE_POINTS = 600  # a long run is thinned to about the pixels there are


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 round values covering low .. high."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        high = low + 1.0 if math.isfinite(low) else 1.0
        low = low if math.isfinite(low) else 0.0
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def svg(height: float, body: Sequence[str], label: str, *, wide: bool = False) -> str:
    """A drawing of WIDTH by `height`, as wide as its column; `label` is for screen readers.

    Args:
        wide: on a phone it scrolls sideways, because it would be too small to read.
    """
    kind = ' class="wide"' if wide else ""
    return (
        f'<div class="scroll"><svg{kind} viewBox="0 0 {WIDTH:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}">' + "".join(body) + "</svg></div>"
    )


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """Words at a place, escaped; `kind` is their CSS class."""
    css = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{css}>{escape(words)}</text>'


def below(x: float) -> str:
    """The anchor of a number below an axis: the last one ends where the drawing does."""
    return "end" if x > WIDTH - 30 else "middle"


def _thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Means over equal runs of points, so that no feature is skipped by chance."""
    if len(points) <= most:
        return list(points)
    size = len(points) / most
    thinned = []
    for k in range(most):
        part = points[int(k * size) : max(int((k + 1) * size), int(k * size) + 1)]
        thinned.append((sum(p[0] for p in part) / len(part), sum(p[1] for p in part) / len(part)))
    return thinned


def _smooth(points: Sequence[tuple[float, float]], span: int) -> list[tuple[float, float]]:
    mean, out = points[0][1], []
    share = 2.0 / (span + 1)
    for x, y in points:
        mean += share * (y - mean)
        out.append((x, mean))
    return out


def line_chart(points: Sequence[tuple[float, float]], *, x_label: str, label: str) -> str:
    """A curve with its running mean: the loss over steps.

    Args:
        points: (x, y); those that are not finite are left out.
        x_label: under the axis.
        label: for screen readers.
    """
    points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if len(points) < 2:
        return '<p class="none">fewer than two steps were recorded</p>'
    points = _thin(points, _CURVE_POINTS)
    height, top, bottom = 270.0, 14.0, BOTTOM
    ys = [y for _, y in points]
    ticks = nice_ticks(min(0.0, *ys), max(ys))
    low, high = min(ticks[0], min(ys)), max(ticks[-1], max(ys))
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1e-9)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT),
            top + (high - y) / (high - low) * (height - top - bottom),
        )

    body = []
    for tick in ticks:
        _, y = place(first, tick)
        body.append(f'<path class="grid" d="M{LEFT:g} {y:.1f}H{WIDTH - RIGHT:g}"/>')
        body.append(text(LEFT - 6, y + 4, f"{tick:g}", "end", "tick"))
    for tick in nice_ticks(first, last, 6):
        x, _ = place(tick, low)
        body.append(text(x, height - bottom + 22, f"{tick:g}", below(x), "tick"))
    body.append(text(WIDTH - RIGHT, height - 7, x_label, "end", "tick"))
    smoothed = _smooth(points, max(2, len(points) // 20))
    for kind, curve in (("faint", points), ("line", smoothed)):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in curve))
        body.append(f'<polyline class="{kind}" points="{path}"/>')
    return svg(height, body, label)


def bar_rows(
    rows: Sequence[tuple[str, Sequence[float | None]]],
    *,
    kinds: Sequence[str],
    limit: float,
    texts: Sequence[Sequence[str]],
    label: str,
    mark: tuple[float, str] | None = None,
) -> str:
    """Horizontal bars, one row per name and one bar per kind: HTML, for names wrap and bars fit.

    Args:
        rows: name and one value per kind; None draws nothing.
        kinds: CSS classes of the bars.
        limit: the value at the right edge.
        texts: what stands behind each bar.
        label: for screen readers.
        mark: a line across all rows and its words: the budget.
    """
    parts = []
    for (name, values), words in zip(rows, texts, strict=True):
        bars = "".join(
            f'<div class="bar"><i class="{kind}" style="width:{100 * value / (limit or 1.0):.1f}%">'
            f"</i><span>{escape(word)}</span></div>"
            for kind, value, word in zip(kinds, values, words, strict=True)
            if value is not None
        )
        parts.append(
            f'<div class="row"><span class="name">{escape(name)}</span><div>{bars}</div></div>'
        )
    if mark:
        at = mark[0] / (limit or 1.0)
        side = "" if at > 0.5 else ' class="after"'
        parts.append(
            f'<div class="mark" style="--at:{at:.4f}"><span{side}>{escape(mark[1])}</span></div>'
        )
    marked = " marked" if mark else ""
    return (
        f'<div class="bars{marked}" role="img" aria-label="{escape(label)}">{"".join(parts)}</div>'
    )


def confusion_matrix(names: Sequence[str], counts: Sequence[Sequence[int]], label: str) -> str:
    """Rows are true classes, columns predicted ones; the darker, the larger a row's share."""
    size = len(names)
    left, top = 136.0, 104.0
    cell = min((WIDTH - left - 4) / max(size, 1), 44.0)
    letters = 16
    body = []
    for k, name in enumerate(names):
        short = name if len(name) <= letters else name[: letters - 1] + "…"
        middle = (k + 0.5) * cell
        body.append(text(left - 6, top + middle + 4, short, "end", "tick"))
        x, y = left + middle + 3, top - 6
        body.append(
            f'<text class="tick" transform="translate({x:.1f} {y:.1f}) rotate(-50)">'
            f"{escape(short)}</text>"
        )
    for i, row in enumerate(counts):
        total = sum(row) or 1
        for j, count in enumerate(row):
            if not count:
                continue
            x, y, share = left + j * cell, top + i * cell, count / total
            kind = "hit" if i == j else "miss"
            body.append(
                f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{cell - 1:.1f}" '
                f'height="{cell - 1:.1f}" fill-opacity="{0.12 + 0.88 * share:.2f}">'
                f"<title>{escape(f'{names[i]} taken for {names[j]}: {count}')}</title></rect>"
            )
            if cell >= 18:
                tone = "on" if share > 0.55 else "cell"
                body.append(text(x + cell / 2, y + cell / 2 + 4, str(count), "middle", tone))
    body.append(
        f'<rect class="frame" x="{left:g}" y="{top:g}" width="{size * cell:.1f}" '
        f'height="{size * cell:.1f}"/>'
    )
    return svg(top + size * cell + 6, body, label, wide=True)
