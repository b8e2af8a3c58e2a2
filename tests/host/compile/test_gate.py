"""The numeric gate lets rounding pass and nothing that is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from edgeladder.core.errors import EdgeLadderError
from edgeladder.host.compile.gate import GRADIENT_TOLERANCE, _compare

GRADIENTS = {"trunk": np.full((8, 8), 1.0), "gate": np.full(1, 0.05)}  # 8 against 0.05


def compare(**changed: np.ndarray) -> float:
    return _compare(GRADIENTS | changed, GRADIENTS, "engine", GRADIENT_TOLERANCE, "gradient")


def test_a_small_sum_of_large_numbers_may_round():
    assert compare(gate=GRADIENTS["gate"] * (1 + 3e-4)) < GRADIENT_TOLERANCE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gate", GRADIENTS["gate"] * 1.01),
        ("gate", np.zeros(1)),
        ("gate", np.full(1, np.nan)),
        ("trunk", GRADIENTS["trunk"] * (1 + 2e-4)),
    ],
)
def test_what_is_wrong_is_named(name, value):
    with pytest.raises(EdgeLadderError, match=f"gradient of '{name}' is off by"):
        compare(**{name: value})


def test_every_tensor_must_be_there():
    with pytest.raises(EdgeLadderError, match="lacks the gradient of 'gate'"):
        _compare({"trunk": GRADIENTS["trunk"]}, GRADIENTS, "engine", 1e-4, "gradient")
