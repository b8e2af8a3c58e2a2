"""Token prompts against a rung in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.host.model import plain
from tests.host.model.rungs import climbed, each_sample, prompts_of, scene


@pytest.mark.parametrize("condensed", [False, True])
def test_they_are_further_keys_and_values_of_the_self_attention(condensed):
    it = scene("token", condensed=condensed)

    def sample(rows, side, number):
        return plain.rung(it.w, rows, seen=prompts_of(it, side, condensed, 50.0))

    np.testing.assert_allclose(climbed(it), each_sample(it, sample), atol=1e-9)
