"""Halves by onnxruntime against halves by numpy: the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from edgeladder.runtime.float16 import Float16Block, to_float16


@pytest.mark.parametrize("shape", [(3,), (5, 1000), (2, 197, 16, 3)])
def test_same_bits_as_numpy(shape: tuple[int, ...]) -> None:
    """Every magnitude, ties and subnormals included, in any memory order."""
    random = np.random.default_rng(0)
    values = (random.normal(size=shape) * 10.0 ** random.integers(-9, 4, shape)).astype(np.float32)
    values.flat[0] = np.float32(2049)  # a tie between two halves
    for array in (values, values.T):
        assert (to_float16(array) == array.astype(np.float16)).all()
        assert to_float16(array).shape == array.shape and to_float16(array).flags.c_contiguous


def test_all_halves_come_back() -> None:
    """Each of the 63,488 finite halves."""
    half = np.arange(65536, dtype=np.uint16).view(np.float16)
    half = half[np.isfinite(half)]
    assert (to_float16(half.astype(np.float32)).view(np.uint16) == half.view(np.uint16)).all()


def test_a_block_is_converted_in_place() -> None:
    """Again and again into the same buffer."""
    block = Float16Block(1000)
    for seed in range(3):
        values = np.random.default_rng(seed).normal(size=1000).astype(np.float16)
        block.float16[:] = values
        block.convert()
        assert (block.float32 == values.astype(np.float32)).all()
