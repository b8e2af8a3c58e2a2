"""Lines over a logarithmic axis as SVG written by hand, so that nothing need be installed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = [
    *("#777777", "#9c6ade", "#d9822b", "#b5a000", "#2f9e44", "#1c7ed6"),
    *("#c2255c", "#0b7285", "#000000", "#e03131", "#5f3dc4", "#087f5b"),
]
_WIDTH, _HEIGHT = 860.0, 440.0
_LEFT, _TOP, _RIGHT, _BOTTOM = 52.0, 16.0, 230.0, 40.0


def line_plot(
    lines: Mapping[str, Mapping[float, float]], axes: str, *, step: float, low: float | None = None
) -> str:
    """One line a name, its points by their place on the horizontal axis.

    Args:
        lines: of at least one point in all.
        axes: what both axes are, below the drawing.
        step: between the horizontal rules.
        low: where the vertical axis begins; None: at the rule below the least value.
    """
    places = sorted({x for line in lines.values() for x in line})
    values = [y for line in lines.values() for y in line.values()]
    bottom = math.floor(min(values) / step) * step if low is None else low
    top = max(math.ceil(max(values) / step) * step, bottom + step)

    def at(x: float, y: float) -> tuple[float, float]:
        share = math.log2(x / places[0]) / max(math.log2(places[-1] / places[0]), 1e-9)
        across = _LEFT + share * (_WIDTH - _LEFT - _RIGHT)
        return across, _TOP + (top - y) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM)

    body = [f'<rect width="{_WIDTH:g}" height="{_HEIGHT:g}" fill="white"/>']
    for number in range(round((top - bottom) / step) + 1):
        value = bottom + number * step
        y = at(places[0], value)[1]
        body.append(f'<path d="M{_LEFT:g} {y:.1f}H{_WIDTH - _RIGHT:g}" stroke="#ddd"/>')
        body.append(f'<text x="{_LEFT - 6:g}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for place in places:
        x = at(place, bottom)[0]
        body.append(f'<text x="{x:.1f}" y="{_HEIGHT - 18:g}" text-anchor="middle">{place:g}</text>')
    body.append(f'<text x="{_LEFT:g}" y="{_HEIGHT - 2:g}">{escape(axes)}</text>')
    for number, (name, line) in enumerate(lines.items()):
        body += _line(number, name, [at(x, line[x]) for x in places if x in line])
    style = '<style>text{font:12px system-ui,"DejaVu Sans",sans-serif;fill:#222}</style>'
    box = f'viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{style}{"".join(body)}</svg>\n'


def _line(number: int, name: str, points: Sequence[tuple[float, float]]) -> list[str]:
    """A line, its points, and its name at the right."""
    colour = _COLOURS[number % len(_COLOURS)]
    dash = ' stroke-dasharray="6 3"' if number >= len(_COLOURS) else ""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    y, x = _TOP + 14 + 20 * number, _WIDTH - _RIGHT + 18
    return [
        f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>',
        *(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points),
        f'<path d="M{x:g} {y - 4:g}h22" stroke="{colour}" stroke-width="2"{dash}/>',
        f'<text x="{x + 28:g}" y="{y:g}">{escape(name)}</text>',
    ]
