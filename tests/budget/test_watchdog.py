"""Which line calls for which order, and how often."""

import pytest

from edgeladder.budget.watchdog import Watchdog

MB = 1_000_000


@pytest.mark.parametrize(
    ("share", "order"),
    [(0.5, None), (0.69, None), (0.71, "trim"), (0.81, "halve"), (0.91, "restart"), (0.96, "kill")],
)
def test_lines(share, order):
    action = Watchdog(100 * MB).observe(int(share * 100 * MB), now=0.0)
    assert (action and action.order) == order


def test_a_planned_peak_is_no_pressure_until_it_is_passed():
    guard = Watchdog(100 * MB, expected_bytes=85 * MB)
    assert guard.observe(85 * MB, 0.0) is None
    assert guard.observe(88 * MB, 0.0).order == "halve"
    assert guard.observe(91 * MB, 0.0).order == "restart"


def test_an_order_is_given_time_before_it_is_repeated():
    guard = Watchdog(100 * MB)
    orders = []
    for tenth in range(50):
        action = guard.observe(82 * MB, tenth / 10)
        orders.append(action.order if action else None)
    assert orders[0] == "halve" and orders[1] == "checkpoint"
    assert orders.count("halve") == 2  # at 0 s and 3 s
    assert 5 <= orders.count("checkpoint") <= 10
    assert guard.observe(96 * MB, 5.0).order == "kill"  # never delayed


def test_without_a_smaller_chunk_it_only_checkpoints():
    guard = Watchdog(100 * MB, shrinkable=False)
    assert guard.observe(82 * MB, 0.0).order == "checkpoint"


def test_pressure_from_other_processes():
    guard = Watchdog(100 * MB, total_bytes=1000 * MB)
    calm = guard.observe(10 * MB, 0.0, available_bytes=500 * MB, stall=0.0)
    assert calm is None
    short = guard.observe(10 * MB, 1.0, available_bytes=40 * MB)
    assert short.order == "halve" and "other processes" in short.reason
    assert guard.observe(10 * MB, 1.1, available_bytes=40 * MB) is None
    stalled = guard.observe(10 * MB, 9.0, available_bytes=500 * MB, stall=25.0)
    assert stalled.order == "halve" and "25 %" in stalled.reason
