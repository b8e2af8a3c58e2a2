"""Wilson's interval, against the formula's definition and known values."""

from __future__ import annotations

import math

import pytest

from edgeladder.core.intervals import interval_text, wilson, with_interval


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (2, 2), (7, 10), (821, 1000)])
def test_both_ends_are_where_the_score_test_just_holds(hits, count):
    """An end p solves (hits/n - p)^2 = z^2 p (1 - p) / n: what Wilson's interval is made of."""
    low, high = wilson(hits, count)
    share = hits / count
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        distance = (share - end) ** 2
        assert distance == pytest.approx(1.959964**2 * end * (1 - end) / count, abs=1e-6)
    assert low < high


def test_known_values_and_nothing_counted():
    low, high = wilson(2, 2)
    assert (round(low, 4), high) == (0.3424, 1.0)
    assert wilson(0, 20)[0] == 0.0 and math.isclose(wilson(0, 20)[1], 0.16113, abs_tol=1e-5)
    assert wilson(0, 0) is None


def test_what_a_person_reads():
    assert with_interval(1.0, 2) == "100.0 % (34.2 to 100.0, 2 pictures)"
    assert with_interval(0.0, 1) == "0.0 % (0.0 to 79.3, 1 picture)"
    assert with_interval(None, 0) == with_interval(None, 5) == "-"


def test_a_damaged_records_text_is_no_count():
    """Found by fuzzing: thousands of millions times a text filled the memory."""
    with pytest.raises(TypeError):
        interval_text(1 << 32, "0")
