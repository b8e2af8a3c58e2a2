"""The referee's sums see every bit of a value, and neither names nor order."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from tools.bench import sums


@pytest.fixture
def tensors():
    generator = np.random.default_rng(0)
    return {
        "a": generator.random((3, 4), np.float32),
        "b": generator.random((4, 3), np.float32),
        "c": np.arange(5, dtype=np.uint8),
    }


def test_tensors_are_summed_by_value_not_by_name(tensors):
    whole = sums.sum_of_tensors(tensors)
    assert whole == sums.sum_of_tensors({"x": tensors["c"], "y": tensors["a"], "z": tensors["b"]})
    for other in (tensors["a"].T, tensors["a"].astype(np.float64), np.nextafter(tensors["a"], 2)):
        assert whole != sums.sum_of_tensors({**tensors, "a": np.ascontiguousarray(other)})


def test_a_cache_is_summed_whatever_its_shards(tmp_path):
    keys = np.arange(64, dtype=np.uint8).reshape(4, 16)
    values = np.arange(24, dtype=np.float16).reshape(4, 6)

    def cache(name, *shards):
        store = tmp_path / name / f"image-{name}-fp16"
        store.mkdir(parents=True)
        save_file({"keys": keys}, store / "index.safetensors")
        for number, (rows, field) in enumerate(shards):
            shard = {"keys": keys[rows], field: values[rows]}
            save_file(shard, store / f"{number:08d}.safetensors")
        return sums.sums_of_cache(tmp_path / name)

    whole = cache("whole", ([0, 1, 2, 3], "taps"))
    assert set(whole) == {"image values", "image keyed"}
    assert cache("split", ([2, 0], "taps"), ([3, 1], "activations")) == whole
    assert cache("less", ([0, 1, 2], "taps"))["image values"] != whole["image values"]


def test_every_difference_is_named():
    before = {"runs": {"a": {"adapter": "1", "losses": "2"}, "b": {"adapter": "3"}}}
    after = {"runs": {"a": {"adapter": "1", "losses": "4"}, "c": {"adapter": "3"}}}
    assert sums.differences(before, before) == []
    assert sums.differences(before, after) == [
        "/runs/a/losses: 2 -> 4",
        "/runs/b: {'adapter': '3'} -> (absent)",
        "/runs/c: (absent) -> {'adapter': '3'}",
    ]


def test_numbers_are_rounded_and_zero_has_no_sign():
    assert sums.rounded(np.array([-1e-9, 0.25, -0.123456789])) == "0.000000 0.250000 -0.123457"
