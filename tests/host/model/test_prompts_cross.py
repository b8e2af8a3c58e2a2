"""Cross prompts against CVPT's formula, arXiv:2408.14961, in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeladder.core.config import LadderConfig
from edgeladder.core.manifest import TapRecord
from edgeladder.core.records import from_json
from edgeladder.host.model.ladder import Ladder
from tests.host.model import plain
from tests.host.model.rungs import INDEX, RUNGS, TOKENS, climbed, each_sample, prompts_of, scene


def expected(it, condensed, cross):
    def sample(rows, side, number):
        def join(state, read, given):
            state = state + given
            prompts = prompts_of(it, side, condensed, 50.0)
            return state + plain.attention(cross, plain.normed(state), prompts)

        return plain.rung(it.w, rows, join=join)

    return each_sample(it, sample)


@pytest.mark.parametrize("condensed", [False, True])
def test_rows_attend_to_them_after_the_self_attention(condensed):
    it = scene("cross", condensed=condensed)
    np.testing.assert_allclose(climbed(it), expected(it, condensed, it.w), atol=1e-9)


@pytest.mark.parametrize("weights", ["copied", "frozen"])
def test_the_weights_are_those_that_were_copied(weights):
    it = scene("cross", cross_weights=weights)
    it.method.copy_attention([dict.fromkeys(range(RUNGS), it.rung)])
    it.method.double()
    copied = dict(it.w)
    with torch.no_grad():
        for parameter in it.rung.parameters():
            parameter += 0.3  # training goes on, the copies stay
    it.w, it.p = plain.arrays(it.rung), plain.arrays(it.method)
    it.given = it.method.prepare(it.taps, TOKENS[0]).of(INDEX)
    np.testing.assert_allclose(climbed(it), expected(it, False, copied), atol=1e-9)
    trained = {name for name, _ in it.method.named_parameters() if name.startswith("copies")}
    assert len(trained) == (RUNGS * 5 if weights == "copied" else 0)
    it.method.copy_attention([dict.fromkeys(range(RUNGS), it.rung)])
    np.testing.assert_allclose(climbed(it), expected(it, False, it.w), atol=1e-9)


@pytest.mark.parametrize("share", ["none", "trunk"])
def test_a_ladder_copies_each_rungs_weights(share):
    torch.manual_seed(0)
    values = {"kind": "cross", "length": 2, "cross_weights": "frozen"}
    config = from_json(LadderConfig, {"width": 8, "heads": 2, "share": share, "prompts": values})
    taps = [TapRecord(name=f"tap_{k}", block=k, tokens=2, width=12) for k in range(3)]
    ladder = Ladder(config, taps, taps[:2], 6)
    copies = ladder.prompts.copies
    rungs = [ladder.rungs] if share == "trunk" else [ladder.image_rungs, ladder.text_rungs]
    assert len(copies) == len(rungs)
    for held, own in zip(copies, rungs, strict=True):
        first = 3 - len(own)
        assert set(held) == {str(k + first) for k in range(len(own))}
        for index, rung in enumerate(own):
            torch.testing.assert_close(held[str(index + first)].key_value, rung.key_value)
    prepared = ladder.prompts.prepare([], 1)
    text = ladder.prompts.attention_of(prepared.side(1).of(2), rungs[-1][-1])
    assert text is copies[-1]["2"], "each side's rungs read with their own"
