"""Fewer prompts in the graphs are as all of them with the rest silenced, to 1e-5."""

from __future__ import annotations

import numpy as np
import pytest

from edgeladder.host.compile.gate import SMALL
from edgeladder.runtime.kept_prompts import kept_places
from tests.host.compile.ladders import NAMES, RECIPES, case, execute
from tests.host.compile.test_step import run_fused

CONDENSED = [recipe for recipe in RECIPES if recipe.keep is not None]
# of three prompts: some of each rung, and none of the first
MASKS = {"some": [[1, 0, 1], [0, 1, 0]], "an empty rung": [[0, 0, 0], [0, 1, 1]]}


@pytest.mark.parametrize("kept", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("recipe", CONDENSED, ids=str)
def test_fewer_are_as_silenced_ones(recipe, kept):
    it = case(recipe)
    state = {**it.random_state(), NAMES.mask: np.array(kept, np.float32)}
    feed = {**it.data(), **state}
    every = {name: np.arange(3) for name in NAMES.kept_inputs(2)}
    silenced, fewer = (execute(it.forward, given) for given in ({**feed, **every}, feed))
    for name in ("loss", "image", "text"):
        np.testing.assert_allclose(fewer[name], silenced[name], atol=1e-6, rtol=1e-5)
    _, before = run_fused(it, {**feed, **every}, recompute=False)
    _, after = run_fused(it, feed, recompute=False)
    whole = np.sqrt(sum(float(np.sum(value**2)) for value in before.values()))
    for name, gradient in before.items():
        # a gate's is a sum that cancels: small numbers are measured against all, as the gate does
        scale = max(float(np.linalg.norm(gradient)), SMALL * whole)
        assert np.linalg.norm(after[name] - gradient) < 1e-5 * scale, name


def test_every_kind_that_condenses_is_compared():
    assert {recipe.kind for recipe in CONDENSED} >= {"token", "cross", "diffusion", "memory"}


def test_places_follow_from_the_mask():
    mask = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 1]], np.float32)
    found = kept_places({NAMES.mask: mask}, NAMES)
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "prompts.kept.0": [0, 2],
        "prompts.kept.1": [0],
        "prompts.kept.2": [0, 1, 2],
    }
    assert all(rows.dtype == np.int64 for rows in found.values())
    assert kept_places({}, NAMES) == {}
