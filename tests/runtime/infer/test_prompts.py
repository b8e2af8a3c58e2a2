"""Stored prompts: the same arrays back bit for bit, and as small as they should be."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeladder.core.errors import IntegrityError
from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.core.records import from_json, to_json
from edgeladder.jobs.codebook import cluster, normalised
from edgeladder.runtime.prompt_storage import finalize, nearest, pack, reactivate, spread, unpack

NAMES = PromptTensors()
RUNGS, LENGTH, WIDTH = 3, 4, 16


def trained(*, bits=None, kept=None, coupled=True, memory=False, seed=0):
    """A ladder's arrays after training, some of them."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.normal(0.1, 0.3, shape).astype(np.float32)

    values = {"image_up": normal(5, 7), "prompts.tokens": normal(RUNGS, LENGTH, WIDTH)}
    if not coupled:
        values["prompts.image_tokens"] = 3 * normal(RUNGS, LENGTH, WIDTH)
    if memory:
        values |= {name: normal(LENGTH, WIDTH) for name in MEMORY}
    if kept is not None:
        mask = np.zeros(RUNGS * LENGTH, np.float32)
        mask[random.permutation(mask.size)[:kept]] = 1
        values["prompts.mask"] = mask.reshape(RUNGS, LENGTH)
    if bits is not None:
        start = np.linspace(-1, 1, 2**bits).astype(np.float32)
        values["prompts.codebook"] = cluster(normalised(values, NAMES), start)
        values["prompts.live"] = np.ones(1, np.float32)
        sets = 1 if coupled else 2
        values["prompts.statistics"] = np.zeros((sets, 2, RUNGS, 1, 1), np.float32)
    return values


MEMORY = ("prompts.memory_key", "prompts.memory_value")


def same(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(right[name], value, err_msg=name)
        assert right[name].dtype == value.dtype and right[name].shape == value.shape, name


@pytest.mark.parametrize("coupled", [True, False])
@pytest.mark.parametrize("kept", [None, 1, 5, 12])
@pytest.mark.parametrize("bits", [None, 1, 2, 4, 8])
def test_what_is_stored_comes_back_bit_for_bit(bits, kept, coupled):
    stored = finalize(trained(bits=bits, kept=kept, coupled=coupled, memory=kept == 5), NAMES)
    tensors, described = pack(stored, NAMES)
    same(stored, unpack(tensors, described, NAMES))
    same(stored, finalize(stored, NAMES))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_training_may_go_on_from_what_is_stored(bits):
    stored = finalize(trained(bits=bits, kept=10), NAMES)
    revived = reactivate(stored, NAMES)
    assert revived["prompts.live"].all()
    again = finalize(revived, NAMES)["prompts.tokens"]
    equal = np.isclose(again, stored["prompts.tokens"], atol=1e-3)
    assert equal.mean() > (0.99 if bits < 8 else 0.9)  # cells of 8 bits are narrow


@pytest.mark.parametrize(("bits", "share"), [(1, 16), (2, 8), (4, 4), (8, 2)])
def test_quantized_prompts_take_their_share_of_the_bytes(bits, share):
    tensors, described = pack(finalize(trained(bits=bits), NAMES), NAMES)
    half = 2 * RUNGS * LENGTH * WIDTH
    assert described.bytes == tensors["packed:prompts.tokens"].nbytes == half // share
    assert tensors["packed:prompts.codebook"].nbytes == 2 * 2**bits


def test_condensed_prompts_are_not_in_the_file():
    values = finalize(trained(kept=3, memory=True), NAMES)
    tensors, described = pack(values, NAMES)
    assert tensors["packed:prompts.tokens"].shape == (3, WIDTH)
    assert described.kept == 3 and "prompts.tokens" not in tensors
    columns = int(values["prompts.mask"].any(0).sum())
    assert tensors["packed:prompts.memory_key"].shape == (columns, WIDTH)


def test_quantized_and_condensed_together():
    values = finalize(trained(bits=1, kept=4, coupled=False), NAMES)
    tensors, _ = pack(values, NAMES)
    assert tensors["packed:prompts.tokens"].nbytes == 4 * WIDTH // 8
    kept = values["prompts.mask"] > 0
    assert not values["prompts.tokens"][~kept].any()
    for name in ("prompts.tokens", "prompts.image_tokens"):
        for rung in range(RUNGS):
            assert len(np.unique(values[name][rung][kept[rung]])) <= 2


def test_settling_takes_the_nearest_entry():
    values = trained(bits=2)
    mean, deviation = spread(values["prompts.tokens"], None)
    normal = ((values["prompts.tokens"] - mean) / deviation)[..., None]
    codebook = values["prompts.codebook"]
    brute = np.abs(normal - codebook).argmin(-1)
    assert (brute == nearest(normal[..., 0], codebook)).mean() > 0.999  # ties may differ
    expected = deviation * codebook[brute] + mean
    np.testing.assert_allclose(finalize(values, NAMES)["prompts.tokens"], expected, atol=1e-6)


def test_arrays_without_prompts_pass_as_they_are():
    values = {"image_up": np.ones((2, 3), np.float32)}
    tensors, described = pack(finalize(values, NAMES), NAMES)
    assert described is None
    same(values, unpack(tensors, None, NAMES))


def test_a_torn_file_is_refused():
    tensors, described = pack(finalize(trained(bits=4, kept=6), NAMES), NAMES)
    short = {**tensors, "packed:prompts.tokens": tensors["packed:prompts.tokens"][:-1]}
    with pytest.raises(IntegrityError, match="stored prompts"):
        unpack(short, described, NAMES)
    del tensors["packed:prompts.codebook"]
    with pytest.raises(IntegrityError, match="stored prompts"):
        unpack(tensors, described, NAMES)


def test_names_travel_with_what_is_stored():
    """A kind with tensors of its own names is stored without a change of this code."""
    names = PromptTensors(prefix="own.", text="own.rows", by_place=("own.place",), mask="own.keep")
    values = trained(kept=5, memory=True)
    own = {
        "own.rows": values["prompts.tokens"],
        "own.place": values["prompts.memory_key"],
        "own.keep": values["prompts.mask"],
    }
    stored = finalize(own, names)
    tensors, described = pack(stored, names)
    assert tensors["packed:own.rows"].shape == (5, WIDTH) and "own.place" not in tensors
    told = from_json(PromptTensors, json.loads(json.dumps(to_json(names))))
    same(stored, unpack(tensors, described, told))
