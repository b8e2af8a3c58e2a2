"""The sampler: every picture once an epoch, and exactly the same after a resume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeladder.core.errors import ConfigError
from edgeladder.runtime.cache.sampler import Sampler, mix

COUNTS = st.integers(1, 40)


@given(count=COUNTS, batch=COUNTS, seed=st.integers(0, 2**40), views=st.integers(0, 3))
def test_every_picture_once_an_epoch(count: int, batch: int, seed: int, views: int) -> None:
    """Batches of one size; their concatenation is permutation after permutation."""
    sampler = Sampler(count, batch, seed, views)
    drawn = [sampler.next() for _ in range(3 * sampler.steps_per_epoch)]
    assert {len(indices) for indices, _ in drawn} == {min(batch, count)}
    stream = np.concatenate([indices for indices, _ in drawn])
    for epoch in range(len(stream) // count):
        part = stream[epoch * count : (epoch + 1) * count]
        assert sorted(part.tolist()) == list(range(count))
    assert all(0 <= view <= views for _, row in drawn for view in row)


@given(count=COUNTS, batch=COUNTS, steps=st.integers(0, 30), views=st.integers(0, 3))
def test_resumed_is_uninterrupted(count: int, batch: int, steps: int, views: int) -> None:
    """A sampler continued from a saved state draws the same batches and views."""
    one, two = Sampler(count, batch, 5, views), Sampler(count, batch, 5, views)
    for _ in range(steps):
        one.next()
    two.load_state(one.state())
    for _ in range(7):
        a, b = one.next(), two.next()
        assert (a[0] == b[0]).all() and (a[1] == b[1]).all()
    assert one.state() == two.state()


def test_seeds_epochs_and_views_differ() -> None:
    """Another seed or epoch is another order; all views are drawn about equally often."""
    first = Sampler(100, 100, 0, 3)
    orders = [first.next()[0].tolist() for _ in range(3)] + [
        Sampler(100, 100, 1).next()[0].tolist()
    ]
    assert len({tuple(order) for order in orders}) == 4
    counts = np.bincount(np.concatenate([first.next()[1] for _ in range(40)]), minlength=4)
    assert (np.abs(counts - 1000) < 120).all()


def test_the_stream_is_pinned() -> None:
    """Runs made with earlier versions resume on the same pictures: these numbers never change."""
    reference = int(mix(np.array([0x9E3779B97F4A7C15], np.uint64))[0])
    assert reference == 0xE220A8397B1DCDAF  # splitmix64's first output for seed 0
    assert Sampler(10, 10, 3).next()[0].tolist() == [3, 8, 4, 9, 2, 1, 7, 6, 0, 5]


def test_a_checkpoint_of_other_pictures_is_refused() -> None:
    """With what differs, and what to do."""
    state = Sampler(10, 4, 0).state()
    with pytest.raises(ConfigError, match="count 10, now it is 11") as caught:
        Sampler(11, 4, 0).load_state(state)
    assert "resume with the pictures" in str(caught.value.remedy)
    with pytest.raises(ConfigError, match="batches of 0"):
        Sampler(10, 0, 0)
