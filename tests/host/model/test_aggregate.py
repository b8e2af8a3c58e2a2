"""Aggregation of the rungs' read-outs against the formulas in plain numpy, sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeladder.core.config import LadderConfig
from edgeladder.core.records import from_json
from edgeladder.host.model.aggregate import Aggregate
from tests.host.model.plain import normed

WIDTH, RUNGS, SAMPLES = 8, 3, 4


def plain(kind: str, rungs: np.ndarray, match: np.ndarray) -> np.ndarray:
    """One sample's read-outs (L, d) -> (d,)."""
    rungs = np.stack([normed(rung) for rung in rungs])
    last = rungs[-1]
    if kind == "last":
        return last
    scores = np.array([rung @ (last @ match) for rung in rungs])
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    total = last.copy()
    for index, rung in enumerate(rungs):
        value = rung
        if kind == "sherl":  # less what it shares with the mean of the others
            others = np.mean([r for k, r in enumerate(rungs) if k != index], axis=0)
            value = rung - (rung @ others) / (others @ others + 1e-6) * others
        total += weights[index] * value
    return total


@pytest.mark.parametrize("kind", ["last", "unipt", "sherl"])
@pytest.mark.parametrize("rungs", [2, RUNGS])
def test_read_outs_become_one_vector(kind, rungs):
    torch.manual_seed(0)
    config = from_json(LadderConfig, {"width": WIDTH, "heads": 2, "aggregate": kind})
    module = Aggregate(config, rungs).double()
    read = torch.randn(rungs, SAMPLES, WIDTH, dtype=torch.float64)
    match = np.zeros((WIDTH, WIDTH))
    if kind != "last":
        with torch.no_grad():
            module.match.normal_(0.0, 0.3)
        match = module.match.detach().numpy()
    found = module(list(read)).detach().numpy()
    for sample in range(SAMPLES):
        expected = plain(kind, read[:, sample].numpy(), match)
        np.testing.assert_allclose(found[sample], expected, atol=1e-9)
