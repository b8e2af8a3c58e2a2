"""Aggregation of the rungs' read-outs against the formulas in plain numpy, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeladder.core.config import LadderConfig
from edgeladder.core.records import from_json
from edgeladder.host.model.aggregate import Aggregate
from tests.host.model.plain import normed

WIDTH, SAMPLES = 8, 6


def unipt(rungs, match):
    """One sample's read-outs (L, d) -> (d,)."""
    scores = np.array([rung @ (rungs[-1] @ match) for rung in rungs])
    weights = np.exp(scores - scores.max())
    return rungs[-1] + (weights / weights.sum()) @ rungs


def sherl(rungs, like, bias):
    """Its early route: likeness to the last, over the redundancy with the other rungs."""
    last, shallow = rungs[-1], rungs[:-1]
    scores = []
    for k, rung in enumerate(shallow):
        others = [other for j, other in enumerate(shallow) if j != k]
        redundancy = 1.0  # with itself
        for other in others:
            cosine = rung @ other / (np.linalg.norm(rung) * np.linalg.norm(other))
            redundancy += max(cosine, 0.0)
        scores.append(max(like @ (rung * last) + bias, 0.0) / redundancy)
    total = sum(scores) + 1e-6
    return last + sum(score / total * rung for score, rung in zip(scores, shallow, strict=True))


def scene(kind, rungs):
    torch.manual_seed(0)
    config = from_json(LadderConfig, {"width": WIDTH, "heads": 2, "aggregate": kind})
    module = Aggregate(config, rungs).double()
    read = torch.randn(rungs, SAMPLES, WIDTH, dtype=torch.float64)
    if rungs > 2:
        read[1] += 0.8 * read[0]  # alike, so that there is redundancy
    return module, read, [normed(read[:, n].numpy()) for n in range(SAMPLES)]


def test_the_last_rung_alone():
    module, read, samples = scene("last", 3)
    np.testing.assert_allclose(module(list(read)), [rungs[-1] for rungs in samples], atol=1e-9)


@pytest.mark.parametrize("rungs", [2, 4])
def test_unipt_weighs_by_similarity_to_the_last(rungs):
    module, read, samples = scene("unipt", rungs)
    with torch.no_grad():
        module.match.normal_(0.0, 0.3)
    expected = [unipt(rungs, module.match.detach().numpy()) for rungs in samples]
    np.testing.assert_allclose(module(list(read)).detach(), expected, atol=1e-9)


@pytest.mark.parametrize("rungs", [3, 4])
def test_sherl_weighs_by_likeness_over_redundancy(rungs):
    module, read, samples = scene("sherl", rungs)
    with torch.no_grad():
        module.like.normal_(0.0, 0.3)
        module.like_bias.fill_(0.5)
    like, bias = module.like.detach().numpy(), module.like_bias.item()
    expected = [sherl(rungs, like, bias) for rungs in samples]
    np.testing.assert_allclose(module(list(read)).detach(), expected, atol=1e-5)


def test_sherl_takes_less_of_what_others_say_too():
    """Two equal read-outs weigh together what one would; alone each weighs half of a third."""
    module, _, _ = scene("sherl", 4)
    a, b, last = torch.eye(3, WIDTH, dtype=torch.float64) @ torch.randn(WIDTH, WIDTH).double()
    with torch.no_grad():
        module.like.zero_()
        module.like_bias.fill_(1.0)  # alike to the last, all of them
    a, b = (normed(v.numpy()) for v in (a, b))
    b = normed(b - (b @ a) / (a @ a) * a)
    rows = [torch.tensor(v)[None] for v in (a, a, b)]
    found = (module([*rows, last[None]])[0].detach() - torch.tensor(normed(last.numpy()))).numpy()
    assert found @ a / (a @ a) == pytest.approx(0.5, abs=1e-3)
    assert found @ b / (b @ b) == pytest.approx(0.5, abs=1e-3)


def test_of_two_rungs_there_is_one_to_weigh():
    module, read, samples = scene("sherl", 2)
    assert not list(module.parameters())
    np.testing.assert_allclose(module(list(read)), [a + b for a, b in samples], atol=1e-9)
