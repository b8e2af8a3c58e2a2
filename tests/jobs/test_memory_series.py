"""Memory over time in a fixed number of points."""

from __future__ import annotations

import time

from edgeladder.jobs.memory_series import MemorySeries


def test_a_long_phase_takes_no_more_points_and_loses_no_peak():
    series = MemorySeries()
    start = time.monotonic()
    for tick in range(200_000):  # 100 000 s
        series.add(start + tick / 2, 999 if tick == 77_777 else tick % 7)
    told = series.to_json()
    peaks = told["used_bytes"]
    assert 100 < len(peaks) <= 240
    assert max(peaks) == 999
    place = peaks.index(999)
    assert abs(place * told["span_seconds"] - 77_777 / 2) <= told["span_seconds"]


def test_a_span_without_a_measurement_is_as_the_one_before():
    series = MemorySeries()
    start = time.monotonic()
    for moment, used in ((0.01, 5), (0.45, 3), (0.46, 2)):
        series.add(start + moment, used)
    assert series.to_json()["used_bytes"] == [5, 5, 5, 5, 3]
