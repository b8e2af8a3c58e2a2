"""Laws of symbolic extents."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeladder.host.compile.extent import Extent, combine, evaluate, parse, substitute, symbol

SYMBOLS = ("B", "C", "N_2")
VALUES = st.fixed_dictionaries({name: st.integers(0, 50) for name in SYMBOLS})
EXTENTS = st.builds(
    lambda constant, terms: combine([(constant, 1), *((symbol(s), c) for s, c in terms.items())]),
    st.integers(0, 99),
    st.dictionaries(st.sampled_from(SYMBOLS), st.integers(0, 9)),
)


def number(extent: int | Extent, values: dict[str, int]) -> int:
    """What an extent is, by its definition."""
    if isinstance(extent, int):
        return extent
    return extent.constant + sum(c * values[s] for s, c in extent.terms)


@given(EXTENTS)
def test_text_round_trip(extent):
    assert parse(str(extent)) == extent


@given(EXTENTS, VALUES)
def test_substitution_of_all_is_the_value(extent, values):
    assert substitute(extent, values) == number(extent, values)
    assert evaluate((extent, 3), values) == (number(extent, values), 3)


@given(EXTENTS, VALUES)
def test_substitution_one_by_one_is_substitution_of_all(extent, values):
    partly = extent
    for name, value in values.items():
        partly = substitute(partly, {name: value})
    assert partly == substitute(extent, values)


@given(EXTENTS, EXTENTS, st.integers(0, 9), VALUES)
def test_sum_and_product_follow_the_values(left, right, factor, values):
    total = combine([(left, 1), (right, factor)])
    assert number(total, values) == number(left, values) + factor * number(right, values)
    if isinstance(left, Extent):
        assert left + right == combine([(left, 1), (right, 1)])
        assert right + left == left + right
        assert factor * left == left * factor


def test_what_cancels_is_a_number():
    assert combine([(symbol("B"), 2), (symbol("B"), -2), (7, 1)]) == 7


@pytest.mark.parametrize("text", ["", "B *", "2 B", "-B", "B + ", "1.5*B"])
def test_what_is_no_extent_is_refused(text):
    with pytest.raises(ValueError, match="not an extent"):
        parse(text)


def test_a_symbol_without_value_is_named():
    with pytest.raises(ValueError, match=r"no value for a symbol of 2\*B \+ 1"):
        evaluate((combine([(symbol("B"), 2), (1, 1)]),), {"C": 1})
