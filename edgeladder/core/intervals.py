"""How sure an accuracy is: an interval for a share that was counted on a number of pictures."""

from __future__ import annotations

import math

_QUANTILE = 1.959963984540054  # of the normal distribution: 95 % lie within

Interval = tuple[float, float]


def wilson(hits: int, count: int) -> Interval | None:
    """The Wilson score interval of `hits` out of `count`, 95 %; None where nothing was counted.

    With p = hits / count and z the quantile (Wilson, JASA 22:209, 1927):
    `(p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)`. Unlike p +- z sd it
    says something of two pictures that were both right: 34 % to 100 %.
    """
    if not count:
        return None
    share, square = hits / count, _QUANTILE**2
    middle = share + square / (2 * count)
    reach = _QUANTILE * math.sqrt(share * (1 - share) / count + square / (4 * count**2))
    scale = 1 + square / count
    low, high = (middle - reach) / scale, (middle + reach) / scale
    # at the ends the formula says exactly 0 and 1, which floats miss
    return (0.0 if not hits else low, 1.0 if hits == count else high)


def of_share(share: float | None, count: int) -> Interval | None:
    """The interval of an accuracy on so many pictures; None where there is none, or no picture."""
    # of a damaged record, a whole number times a text would fill the memory
    return None if share is None else wilson(round(float(share) * count), count)


def with_interval(share: float | None, count: int) -> str:
    """`82.1 % (79.0 to 84.8, 500 pictures)`, or a dash: how an accuracy is shown to a person."""
    ends = interval_text(share, count)
    if share is None or not ends:
        return "-"
    noun = "picture" if count == 1 else "pictures"
    return f"{100 * share:.1f} % ({ends}, {count} {noun})"


def interval_text(share: float | None, count: int) -> str:
    """`79.0 to 84.8`, of a share of so many pictures in percent; empty where there are none."""
    found = of_share(share, count)
    return "" if found is None else f"{100 * found[0]:.1f} to {100 * found[1]:.1f}"
