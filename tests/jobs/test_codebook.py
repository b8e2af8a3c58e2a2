"""The codebook of quantized prompts: k-means, and when it is clustered again."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.jobs.codebook import Codebook, cluster, drift, histogram, normalised


def loop_with(tokens, codebook, mask=None):
    buffers = {"prompts.codebook": codebook}
    if mask is not None:
        buffers["prompts.mask"] = mask
    engine = SimpleNamespace(
        parameters=lambda: {"prompts.tokens": tokens},
        buffers=lambda: dict(buffers),
        set_buffers=buffers.update,
    )
    records = []
    return SimpleNamespace(engine=engine, step=0, record=records.append), records, buffers


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_each_entry_is_the_mean_of_its_values(bits):
    values = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    codebook = cluster(values, np.linspace(-2, 2, 2**bits).astype(np.float32))
    assert (np.diff(codebook) > 0).all()
    owner = np.abs(values[:, None] - codebook).argmin(1)
    means = np.array([values[owner == k].mean() for k in range(2**bits)])
    np.testing.assert_allclose(codebook, means, atol=0.03 if bits < 8 else 0.05)
    np.testing.assert_array_equal(codebook, codebook.astype(np.float16))
    if bits == 1:  # of a normal distribution: +- sqrt(2 / pi)
        np.testing.assert_allclose(codebook, [-0.798, 0.798], atol=0.03)


def test_normalised_values_leave_out_what_was_condensed():
    random = np.random.default_rng(1)
    tokens = random.normal(3, 2, (2, 3, 8)).astype(np.float32)
    mask = np.float32([[1, 0, 1], [0, 0, 0]])
    values = normalised({"prompts.tokens": tokens, "prompts.mask": mask}, PromptTensors())
    kept = tokens[0, [0, 2]]
    np.testing.assert_allclose(values, ((kept - kept.mean()) / kept.std()).ravel(), atol=1e-5)


def test_it_clusters_at_first_and_then_only_after_a_drift():
    random = np.random.default_rng(2)
    tokens = random.normal(size=(2, 3, 64)).astype(np.float32)
    loop, records, buffers = loop_with(tokens, np.float32([-9, -8, 8, 9]))
    callback = Codebook(PromptTensors())
    callback.before(loop)
    first = buffers["prompts.codebook"]
    assert abs(first).max() < 3 and records[0]["drift"] is None
    loop.step = 40
    callback.before(loop)
    assert len(records) == 1, "nothing has moved"
    tokens[...] = np.sign(tokens) * (1 + 0.05 * random.random(tokens.shape))  # two clusters now
    loop.step = 41
    callback.before(loop)
    assert len(records) == 1, "too soon after the last look"
    again = Codebook(PromptTensors())
    again.load_state(callback.state())
    loop.step = 60
    again.before(loop)
    assert len(records) == 2 and records[1]["drift"] > 0.01
    assert not np.array_equal(buffers["prompts.codebook"], first)


def test_drift_is_zero_for_the_same_histogram_and_grows():
    codebook = np.float32([-1, 1])
    even = histogram(np.float32([-1, -1, 1, 1]), codebook)
    assert even.tolist() == [2, 2] and drift(even, even) == 0
    assert 0 < drift(even, np.array([1, 3])) < drift(even, np.array([0, 4]))
