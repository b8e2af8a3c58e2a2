"""Diffusion prompts against APT's formula, arXiv:2306.15706, in plain numpy, row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.host.model import plain
from tests.host.model.rungs import COUNTS, INDEX, TOKENS, climbed, each_sample, prompts_of, scene


def expected(it, condensed):
    scale = np.exp(it.p["scale"][INDEX])

    def sample(rows, side, number):
        prompts = prompts_of(it, side, condensed, 1.0)
        keys = prompts + prompts @ it.p["reduce"][INDEX] @ it.p["expand"][INDEX]

        def join(state, read, given):
            out = np.empty_like(state)
            for t in range(len(state)):
                scores = np.maximum(keys @ read[t], 0.0)  # of what attention read
                out[t] = state[t] + scale * (given[t] + scores.max() * (scores @ prompts))
            return out

        return plain.rung(it.w, rows, join=join)

    return each_sample(it, sample)


@pytest.mark.parametrize("condensed", [False, True])
def test_information_diffuses_without_a_softmax(condensed):
    it = scene("diffusion", condensed=condensed)
    np.testing.assert_allclose(climbed(it), expected(it, condensed), atol=1e-9)


def test_the_scale_is_of_attention_and_diffusion_together():
    it = scene("diffusion")
    with torch.no_grad():
        it.method.tokens.zero_()
    it.given = it.method.prepare(it.taps, TOKENS[0]).of(INDEX)
    it.p = plain.arrays(it.method)
    np.testing.assert_allclose(climbed(it), expected(it, False), atol=1e-9)
    found = it.rung(None, it.state, TOKENS, COUNTS, it.given).sum()
    slope = torch.autograd.grad(found, it.method.scale)[0]
    assert slope[INDEX] != 0 and slope[INDEX - 1] == 0, "it scales attention without any prompt"


def test_the_largest_score_weighs_without_a_gradient():
    it = scene("diffusion")
    rows, prompt = torch.randn(5, 8).double(), it.given.tokens[0].detach().requires_grad_(True)
    slope = torch.autograd.grad(it.method.diffuse(it.given, rows, prompt).sum(), prompt)[0]
    reduce, expand = it.method.reduce[INDEX], it.method.expand[INDEX]
    scores = torch.relu(rows @ (prompt + prompt @ reduce @ expand).T)
    held = torch.tensor(scores.detach().numpy().max(-1, keepdims=True))
    wanted = torch.autograd.grad((held * (scores @ prompt)).sum(), prompt)[0]
    torch.testing.assert_close(slope, wanted)
