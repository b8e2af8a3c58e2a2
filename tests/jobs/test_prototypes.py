"""Prompts from prototypes of the training activations."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgeladder.core.config import PromptConfig
from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.jobs.prototypes import gather, initial_prompts, prototypes

WIDTH, RUNG = 6, 4


@pytest.fixture
def scene():
    """Two image taps in one group, one text tap that joins at the later rung."""
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.normal(size=shape).astype(np.float32)

    groups = [
        SimpleNamespace(side="image", taps=[0, 1], tokens=3, width=WIDTH),
        SimpleNamespace(side="text", taps=[0], tokens=2, width=5),
    ]
    parameters = {
        "image_down.weights.0": normal(2, WIDTH, RUNG),
        "image_down.bias.0": normal(2, 1, RUNG),
        "text_down.weights.0": normal(1, 5, RUNG),
        "text_down.bias.0": normal(1, 1, RUNG),
        "prompts.tokens": 0.02 * normal(2, 3, RUNG),
    }
    image, text = normal(2, 3, 7, WIDTH), normal(1, 2, 4, 5)
    window = SimpleNamespace(
        labels=np.zeros(7, np.int64),
        text_embedding=np.zeros((4, 2)),
        image_taps=lambda a, b: [image[:, :, a:b]],
        text_taps=lambda a, b: [text[:, :, a:b]],
    )
    return SimpleNamespace(groups=groups, prompts=PromptTensors()), parameters, [window], image


def test_tokens_are_projected_as_the_rung_does_it(scene):
    ladder, parameters, windows, image = scene
    found = gather(ladder, parameters, windows, "image")
    assert [len(rows) for rows in found] == [21, 21]
    expected = image[1, 2, 4] @ parameters["image_down.weights.0"][1]
    expected = expected + parameters["image_down.bias.0"][1, 0]
    assert np.abs(found[1] - expected).max(axis=1).min() < 1e-5


def test_centres_are_means_of_well_separated_clusters():
    random = np.random.default_rng(1)
    true = np.array([[9.0, 0], [0, 9], [-9, -9]])
    tokens = (true[random.integers(3, size=300)] + random.normal(size=(300, 2))).astype("f")
    found = prototypes(tokens, 3, "prototypes", seed=0)
    distance = np.linalg.norm(found[:, None] - true, axis=-1)
    assert distance.min(axis=0).max() < 0.5


def test_a_sample_is_of_the_set_and_repeats_where_there_are_too_few():
    tokens = np.arange(10, dtype=np.float32).reshape(5, 2)
    found = prototypes(tokens, 8, "samples", seed=3)
    assert found.shape == (8, 2) and {tuple(row) for row in found} == {tuple(r) for r in tokens}
    np.testing.assert_array_equal(found, prototypes(tokens, 8, "samples", seed=3))


@pytest.mark.parametrize("kind", ["token", "diffusion"])
def test_prompts_begin_as_normed_tokens_or_in_their_direction(scene, kind):
    ladder, parameters, windows, _ = scene
    config = PromptConfig(kind=kind, initialize="samples")
    made = initial_prompts(ladder, config, parameters, windows, seed=0)
    assert made.keys() == {"prompts.tokens"}
    size = np.sqrt(np.mean(parameters["prompts.tokens"] ** 2))
    for rung, tokens in enumerate(gather(ladder, parameters, windows, "image")):
        if kind == "token":  # what the layer norm makes of them
            tokens = tokens - tokens.mean(-1, keepdims=True)
        tokens = tokens / np.sqrt((tokens**2).mean(-1, keepdims=True))
        for prompt in made["prompts.tokens"][rung]:
            # at the size of the random ones, which the graph multiplies
            assert np.abs(tokens * size - prompt).max(axis=1).min() < 1e-6


def test_prompts_that_pictures_have_not_begin_as_the_classes_tokens(scene):
    ladder, parameters, windows, _ = scene
    ladder.prompts = PromptTensors(of_pictures=False)
    config = PromptConfig(kind="memory", initialize="samples")
    made = initial_prompts(ladder, config, parameters, windows, seed=0)["prompts.tokens"]
    text = gather(ladder, parameters, windows, "text")[0]
    text = text / np.linalg.norm(text, axis=1, keepdims=True)
    for prompt in made[1]:
        assert (text @ (prompt / np.linalg.norm(prompt))).max() > 0.9999


def test_a_rung_that_text_lacks_takes_the_pictures_tokens(scene):
    ladder, parameters, windows, _ = scene
    parameters["prompts.image_tokens"] = parameters["prompts.tokens"].copy()
    config = PromptConfig(kind="diffusion", initialize="samples")
    made = initial_prompts(ladder, config, parameters, windows, seed=0)
    image = gather(ladder, parameters, windows, "image")
    text = gather(ladder, parameters, windows, "text")
    for name, rung, source in (
        ("prompts.tokens", 0, image[0]),
        ("prompts.tokens", 1, text[0]),
        ("prompts.image_tokens", 1, image[1]),
    ):
        unit = source / np.linalg.norm(source, axis=1, keepdims=True)
        for prompt in made[name][rung]:
            assert (unit @ (prompt / np.linalg.norm(prompt))).max() > 0.9999
