"""The codebook of quantized prompts: k-means, and when it is clustered again."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.jobs.codebook import Codebook, cluster, drift, histogram, normalised
from edgeladder.runtime.prompt_storage import finalize


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


def plain_k_means(values, centres):
    """Lloyd's algorithm, one value after the other."""
    centres = sorted(float(c) for c in centres)
    while True:
        owned = [[] for _ in centres]
        for value in values.tolist():
            owned[min(range(len(centres)), key=lambda k: abs(value - centres[k]))].append(value)
        moved = sorted(sum(v) / len(v) if v else c for v, c in zip(owned, centres, strict=True))
        if moved == centres:
            return centres, [len(v) for v in owned]
        centres = moved


def test_prompts_are_quantized_and_clustered_as_the_paper_writes_it():
    """W_q = sigma Q((W - mu) / sigma) + mu per rung; Q by k-means, anew when indices drift."""
    random = np.random.default_rng(4)
    tokens = random.normal(0.3, 0.02, (2, 3, 16)).astype(np.float32)
    loop, records, buffers = loop_with(tokens, np.float32([-1.5, -0.5, 0.5, 1.5]))
    callback = Codebook(PromptTensors())

    def normal():
        return np.concatenate([((w - w.mean()) / w.std()).ravel() for w in tokens])

    callback.before(loop)
    centres, counts = plain_k_means(normal(), [-1.5, -0.5, 0.5, 1.5])
    np.testing.assert_allclose(buffers["prompts.codebook"], centres, atol=2e-3)  # kept as fp16
    assert abs(np.array(counts) - callback.counts).max() <= 1

    for step in range(20, 201, 20):  # values creep up to one end, until enough have changed
        tokens += (0.002 * (tokens > 0.3)).astype(np.float32)
        tokens[0, 0, : step // 20] = 0.4
        loop.step = step
        before, seen = buffers["prompts.codebook"].copy(), callback.counts.copy()
        owner = np.abs(normal()[:, None] - before).argmin(1)
        p = (np.bincount(owner, minlength=4) + 1) / (owner.size + 4)
        q = (seen + 1) / (seen.sum() + 4)
        callback.before(loop)
        again = (p * np.log(p / q)).sum() >= 0.01
        assert again == (callback.clustered_at == step)
        assert again or np.array_equal(before, buffers["prompts.codebook"])
        if again:
            centres, _ = plain_k_means(normal(), before)
            np.testing.assert_allclose(buffers["prompts.codebook"], centres, atol=5e-3)
    assert 1 < len(records) < 11, "sometimes, and not always"

    names = PromptTensors()
    values = {names.text: tokens, **buffers}
    values |= {names.live: np.ones(1, "f"), names.statistics: np.zeros((1, 2, 2, 1, 1), "f")}
    stored = finalize(values, names)[names.text]
    for rung, own in enumerate(tokens):
        mean, deviation = own.mean(), own.std()
        for value, found in zip(own.ravel(), stored[rung].ravel(), strict=True):
            entries = buffers["prompts.codebook"].tolist()
            entry = min(entries, key=lambda c: abs((value - mean) / deviation - c))
            assert found == pytest.approx(deviation * entry + mean, abs=1e-5)
