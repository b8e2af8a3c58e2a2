"""Memory prompts against MemVP's formula in plain numpy, one sample and one entry at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.host.model import plain
from tests.host.model.rungs import INDEX, RUNGS, TOKENS, WIDTH, climbed, each_sample, kept, scene


def visual(it, sample, entry):
    """P(x): a token of the sample's own taps, the last tap first, projected, times 0.01."""
    place = entry // TOKENS[0]
    if place >= RUNGS:
        return 0.0
    token = it.pictures[RUNGS - 1 - place][entry % TOKENS[0], sample]
    hidden = plain.silu(token @ it.p["reduce"] + it.p["reduce_bias"])
    return 0.01 * (hidden @ it.p["expand"])


def expected(it, condensed, length):
    def sample(rows, side, number):
        def beside(inner):
            total = np.zeros_like(inner)
            for k in kept(condensed) if length == 3 else range(length):
                own = visual(it, number, k) if side == 0 else it.p["tokens"][INDEX, k]
                key, value = own + it.p["memory_key"][k], own + it.p["memory_value"][k]
                for t in range(len(inner)):
                    total[t] += 0.1 * plain.silu(inner[t] @ key) * value
            return total

        return plain.rung(it.w, rows, beside=beside)

    return each_sample(it, sample)


@pytest.mark.parametrize(
    ("condensed", "length"), [(False, 3), (True, 3), (False, 1), (False, 5), (False, 8)]
)
def test_pictures_read_themselves_and_classes_read_tokens(condensed, length):
    it = scene("memory", condensed=condensed, length=length)
    np.testing.assert_allclose(climbed(it), expected(it, condensed, length), atol=1e-9)
    assert it.method.tensors().by_place == ("prompts.memory_key", "prompts.memory_value")
    assert not it.method.tensors().of_pictures


def test_a_picture_changes_its_own_memory_alone_and_no_classs():
    it = scene("memory")
    before = climbed(it)
    it.taps[-1].reshape(TOKENS[0], -1, WIDTH)[:, 2] += 5.0
    it.given = it.method.prepare(it.taps, TOKENS[0]).of(INDEX)
    moved = np.abs(climbed(it) - before).max(-1)
    image = moved[: TOKENS[0] * 4].reshape(TOKENS[0], 4)
    assert (image[:, 2] > 1e-3).all()
    assert not image[:, [0, 1, 3]].any() and not moved[TOKENS[0] * 4 :].any()


def test_as_in_the_paper_at_the_start():
    torch.manual_seed(0)
    it = scene("memory", length=64)
    fresh = type(it.method)(it_config(64), RUNGS)
    assert fresh.memory_key.std().item() == pytest.approx(0.02, rel=0.1)
    assert not fresh.memory_value.any()


def it_config(length):
    from edgeladder.core.config import LadderConfig, PromptConfig

    return LadderConfig(width=WIDTH, heads=2, prompts=PromptConfig(kind="memory", length=length))
