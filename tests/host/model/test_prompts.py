"""The registry of prompt methods, and what all of them share."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch

from edgeladder.core.config import LadderConfig
from edgeladder.core.prompt_kinds import KINDS, Kind, refused
from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.core.records import from_json, to_json
from edgeladder.host.model.prompts import METHODS, build_prompts
from edgeladder.host.model.prompts.base import PromptMethod, register
from edgeladder.host.model.prompts.quantize import normal_codebook, quantize
from tests.host.model.rungs import INDEX, LENGTH, RUNGS, TOKENS, WIDTH, climbed, scene


def test_rows_of_core_and_classes_of_the_host_are_the_same_kinds():
    assert set(METHODS) == set(KINDS) == set(get_args(Kind))
    for kind, method in METHODS.items():
        assert method.kind == kind and method.__module__.endswith(f".{kind}")


def test_a_kind_without_a_row_and_a_second_class_are_refused():
    class Odd(PromptMethod):
        pass

    with pytest.raises(ValueError, match=r"Odd: kind 'odd' has no row in .*prompt_kinds\.py"):
        register("odd")(Odd)
    with pytest.raises(ValueError, match="Odd: kind 'token' is TokenPrompts already"):
        register("token")(Odd)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"none"}))
@pytest.mark.parametrize("coupled", [True, False])
def test_what_the_bundle_says_of_the_tensors_is_true(kind, coupled):
    method = scene(kind, condensed=True, bits=2, couple=coupled).method
    given = method.tensors()
    assert from_json(PromptTensors, to_json(given)) == given
    state = {f"prompts.{name}": value for name, value in method.state_dict().items()}
    assert all(name.startswith(given.prefix) for name in state)
    assert len(given.sets(state)) == (2 if given.of_pictures and not coupled else 1)
    for name in given.sets(state):
        assert state[name].shape == (RUNGS, LENGTH, WIDTH)
    assert given.places(state) == list(given.by_place)
    for name in given.places(state):
        assert state[name].shape == (LENGTH, WIDTH)
    assert state[given.mask].shape == (RUNGS, LENGTH)
    assert state[given.codebook].shape == (4,) and state[given.live].tolist() == [1.0]
    assert state[given.statistics].shape == (len(given.sets(state)), 2, RUNGS, 1, 1)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_row_says_what_a_kind_combines_with(kind):
    row = KINDS[kind]
    settings = {"bits": None, "keep": None, "initialize": "random"}
    assert refused(kind, **settings) is None
    for name, value, allowed in (
        ("bits", 1, row.quantize),
        ("keep", 0.5, row.condense),
        ("initialize", "samples", row.prototypes is not None),
        ("dropout", 0.1, row.dropout),
        ("cross_weights", "frozen", row.own_attention),
    ):
        found = refused(kind, **{**settings, name: value})
        assert (found is None) == allowed
        if found is not None:
            assert found.startswith(name) and f" given, but kind {kind} has no " in found


def test_coupled_pictures_get_the_texts_prompts_and_a_map_of_them():
    it = scene("diffusion")
    image, text = it.given.tokens
    torch.testing.assert_close(text, it.method.tokens[INDEX])
    torch.testing.assert_close(image, text + text @ it.method.couple[INDEX])
    apart = scene("diffusion", couple=False)
    torch.testing.assert_close(apart.given.tokens[0], apart.method.image_tokens[INDEX])


@pytest.mark.parametrize("masked", [False, True])
def test_quantized_values_are_the_nearest_entries_and_gradients_pass_straight(masked):
    torch.manual_seed(0)
    tokens = (2 * torch.randn(RUNGS, LENGTH, WIDTH) + 1).requires_grad_(True)
    mask = torch.ones(RUNGS, LENGTH)
    mask[0, 1] = 0.0
    codebook, live = normal_codebook(2), torch.ones(1)
    stored = (live, torch.zeros(1, 2, RUNGS, 1, 1))
    found = quantize(tokens, 0, codebook, stored, mask if masked else None)
    for rung in range(RUNGS):
        own = tokens[rung].detach()
        read = own[mask[rung] > 0] if masked else own
        mean, deviation = read.mean(), read.std(unbiased=False)
        normal = (own - mean) / deviation
        entries = codebook[(normal[..., None] - codebook).abs().argmin(-1)]
        torch.testing.assert_close(found[rung].detach(), entries * deviation + mean)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), tokens)[0], torch.ones_like(tokens))
    # where mean and deviation are stored, they are taken in place of what is measured
    stored = (torch.zeros(1), torch.tensor([3.0, 2.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 2, 1, 1))
    again = quantize(torch.full((RUNGS, LENGTH, WIDTH), 3.1), 0, codebook, stored, None)
    torch.testing.assert_close(again, (3.0 + 2.0 * codebook[2]).expand_as(again))


@pytest.mark.parametrize("kind", ["token", "cross"])
def test_prompts_beside_normed_rows_are_as_large_as_they_at_the_start(kind):
    config = from_json(
        LadderConfig, {"width": 96, "heads": 2, "prompts": {"kind": kind, "length": 16}}
    )
    torch.manual_seed(0)
    method = build_prompts(config, 2)
    assert method.tokens.std().item() == pytest.approx(0.02, rel=0.05)
    image, text = method.prepare([], 1).of(0).tokens
    assert image.std().item() == pytest.approx(1.0, rel=0.05)
    torch.testing.assert_close(image, text)


@pytest.mark.parametrize("kind", ["token", "cross"])
def test_mean_and_deviation_of_the_codebook_act(kind):
    """A layer norm after the codebook would undo both."""
    it = scene(kind, bits=1)
    found = []
    for mean, deviation in ((0.0, 0.02), (0.01, 0.02), (0.0, 0.04)):
        with torch.no_grad():
            it.method.live.zero_()
            it.method.statistics[:, 0] = mean
            it.method.statistics[:, 1] = deviation
        it.given = it.method.prepare(it.taps, TOKENS[0]).of(INDEX)
        found.append(climbed(it))
    assert all(np.abs(other - found[0]).max() > 1e-2 for other in found[1:])


def test_dropout_multiplies_each_sides_prompts():
    for kind in ("token", "cross", "diffusion"):
        it = scene(kind, dropout=0.3)
        plain = [tokens.clone() for tokens in it.given.tokens]
        with torch.no_grad():
            it.method.dropout.copy_(torch.rand(it.method.dropout.shape))
        dropped = it.method.prepare(it.taps, TOKENS[0]).of(INDEX).tokens
        for side in (0, 1):
            torch.testing.assert_close(dropped[side], plain[side] * it.method.dropout[side, INDEX])
