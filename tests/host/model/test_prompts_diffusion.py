"""Diffusion prompts against APT's formula, arXiv:2306.15706, written out per row."""

from __future__ import annotations

import pytest
import torch

from tests.host.model.rungs import INDEX, attended, climbed, fed, per_row, scene


@pytest.mark.parametrize("condensed", [False, True])
def test_information_diffuses_without_a_softmax(condensed):
    it = scene("diffusion", condensed=condensed)
    method, state = it.method, attended(it)

    def diffuse(row, prompts):
        keys = prompts + prompts @ method.reduce[INDEX] @ method.expand[INDEX]
        scores = torch.clamp(keys @ row, min=0)
        return torch.exp(method.scale[INDEX]) * scores.max() * (scores @ prompts)

    expected = fed(it, state + per_row(it, state, diffuse, condensed))
    torch.testing.assert_close(climbed(it), expected)
    plain = torch.autograd.grad(climbed(it).sum(), method.scale)[0]
    assert plain[INDEX] != 0 and plain[INDEX - 1] == 0
