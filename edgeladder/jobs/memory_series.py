"""Memory over time, in a fixed number of points however long a phase takes."""

from __future__ import annotations

import time

_MOST_POINTS = 240
_FIRST_SECONDS = 0.1  # between two points, until they are thinned


class MemorySeries:
    """The highest memory in each of equal spans of time; spans double when there are too many."""

    def __init__(self) -> None:
        self._began = time.time()
        self._started = time.monotonic()
        self._span_seconds = _FIRST_SECONDS
        self._peaks: list[int] = []

    def add(self, now: float, used_bytes: int) -> None:
        """Take a measurement; `now` is `time.monotonic()`'s."""
        place = max(0, int((now - self._started) / self._span_seconds))
        while place >= _MOST_POINTS:
            self._peaks = [max(self._peaks[k : k + 2]) for k in range(0, len(self._peaks), 2)]
            self._span_seconds *= 2
            place //= 2
        if place < len(self._peaks):
            self._peaks[place] = max(self._peaks[place], used_bytes)
            return
        # a span in which nothing was measured is as high as the one before
        last = self._peaks[-1] if self._peaks else used_bytes
        self._peaks += [last] * (place - len(self._peaks))
        self._peaks.append(used_bytes)

    def to_json(self) -> dict[str, float | list[int]]:
        """When it began (seconds since 1970), the span of a point in seconds, and bytes of each."""
        return {
            "began": round(self._began, 3),
            "span_seconds": self._span_seconds,
            "used_bytes": self._peaks,
        }
