"""Memory prompts against MemVP's formula, written out per row."""

from __future__ import annotations

import pytest
import torch

from tests.host.model.rungs import DROPPED, LENGTH, attended, climbed, fed, per_row, scene


@pytest.mark.parametrize("condensed", [False, True])
def test_they_are_entries_of_the_feed_forward_layer(condensed):
    it = scene("memory", condensed=condensed)
    method, state = it.method, attended(it)
    places = [k for k in range(LENGTH) if not (condensed and k == DROPPED)]

    def remember(row, prompts):
        scores = (prompts + method.memory_key[places]) @ row
        silu = scores / (1 + torch.exp(-scores))
        return 0.1 * silu @ (prompts + method.memory_value[places])

    expected = fed(it, state) + per_row(it, state, remember, condensed)
    torch.testing.assert_close(climbed(it), expected)
    assert method.tensors().by_place == ("prompts.memory_key", "prompts.memory_value")
