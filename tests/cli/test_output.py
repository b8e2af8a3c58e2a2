"""JSON-ready values and plain tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeladder.cli.output import plain, table


def test_plain_makes_json_of_what_commands_hold():
    values = {
        "path": Path("a/b"),
        "array": np.arange(3),
        "scalar": np.float32(0.5),
        "nan": float("nan"),
        "inside": [float("inf"), np.float64("nan"), (1, "x")],
        1: True,
    }
    assert plain(values) == {
        "path": "a/b",
        "array": [0, 1, 2],
        "scalar": 0.5,
        "nan": None,
        "inside": [None, None, [1, "x"]],
        "1": True,
    }


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
trees = st.recursive(leaves, lambda t: st.lists(t) | st.dictionaries(st.text(), t))


@given(trees)
def test_plain_is_always_strict_json_and_idempotent(value):
    once = plain(value)
    assert plain(once) == once
    assert json.loads(json.dumps(once, allow_nan=False)) == once


def test_table_aligns_words_left_and_numbers_right():
    text = table(["class", "n"], [["cat", 5], ["elephant", 12]])
    assert text.splitlines() == ["class      n", "cat        5", "elephant  12"]


def test_table_without_rows_is_its_header():
    assert table(["a", "b"], []) == "a  b"
