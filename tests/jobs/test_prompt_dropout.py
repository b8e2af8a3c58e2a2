"""Prompt dropout: what is drawn, when, and that it is gone after the step."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.jobs.prompt_dropout import PromptDropout

SHAPE = (2, 3, 16, 64)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
def test_values_are_left_out_and_the_rest_grow_as_in_nn_dropout(rate):
    drawn = PromptDropout(PromptTensors(), rate, seed=1).draw(SHAPE, 5)
    assert drawn.shape == SHAPE and drawn.dtype == np.float32
    assert set(np.unique(drawn).tolist()) <= {0.0, float(np.float32(1 / (1 - np.float32(rate))))}
    assert (drawn == 0).mean() == pytest.approx(rate, abs=0.02)
    assert drawn.mean() == pytest.approx(1.0, abs=0.02)


def test_a_draw_is_of_seed_and_step_so_that_a_resumed_run_draws_it_again():
    first = PromptDropout(PromptTensors(), 0.5, seed=1)
    resumed = PromptDropout(PromptTensors(), 0.5, seed=1)
    resumed.load_state(first.state())
    np.testing.assert_array_equal(first.draw(SHAPE, 7), resumed.draw(SHAPE, 7))
    others = first.draw(SHAPE, 8), PromptDropout(PromptTensors(), 0.5, seed=2).draw(SHAPE, 7)
    assert all((first.draw(SHAPE, 7) != other).mean() > 0.3 for other in others)


def test_only_the_step_sees_it():
    held = {"prompts.dropout": np.ones(SHAPE, np.float32)}
    engine = SimpleNamespace(buffers=lambda: dict(held), set_buffers=held.update)
    loop = SimpleNamespace(engine=engine, step=3)
    dropout = PromptDropout(PromptTensors(), 0.5, seed=1)
    dropout.before(loop)
    np.testing.assert_array_equal(held["prompts.dropout"], dropout.draw(SHAPE, 3))
    dropout.after(loop)
    assert (held["prompts.dropout"] == 1).all()
