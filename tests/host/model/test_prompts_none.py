"""No prompts: the rung alone, and no tensor."""

from __future__ import annotations

import numpy as np

from tests.host.model import plain
from tests.host.model.rungs import climbed, each_sample, scene


def test_the_rung_is_alone():
    it = scene("none")
    expected = each_sample(it, lambda rows, side, number: plain.rung(it.w, rows))
    np.testing.assert_allclose(climbed(it), expected, atol=1e-9)
    assert not it.method.state_dict()
