"""The lowered ladder against torch, for every method and switch."""

from __future__ import annotations

import dataclasses
import itertools
from typing import get_args, get_type_hints

import numpy as np
import onnx
import pytest
import torch

from edgeladder.core.config import LadderConfig, PromptConfig
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.prompt_kinds import KINDS
from edgeladder.host.compile.forward import lower
from edgeladder.runtime.kept_prompts import kept_places
from tests.host.compile.ladders import NAMES, RECIPES, case, execute, relative


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_lowered_ladder_equals_torch(recipe):
    it = case(recipe)
    state = it.random_state()
    # sizes other than those of the trace
    data = it.data(batch=4, classes=9, seed=3)
    reference, _ = it.reference(data, state)
    found = execute(it.forward, {**data, **state})
    for name, value in reference.items():
        assert relative(found[name], value) < 1e-5, name


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_parameters_and_buffers_stay_inputs(recipe):
    it = case(recipe)
    onnx.checker.check_model(it.forward.to_onnx())
    assert set(it.forward.inputs) == {*it.names, *it.state(), *kept_places(it.state(), NAMES)}
    for name, value in it.state().items():
        assert it.forward.shapes[name] == value.shape, name


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_at_the_start_logits_are_zero_shot(recipe):
    it = case(recipe)
    data = it.data()
    found = execute(it.forward, {**data, **it.state()})
    for side in ("image", "text"):
        np.testing.assert_allclose(found[side], data[f"{side}_embedding"], atol=1e-6)
    logits = found["image"] @ found["text"].T
    zero_shot = data["image_embedding"] @ data["text_embedding"].T
    assert np.abs(logits - zero_shot).max() < 1e-5


def test_the_recipes_use_every_switch():
    """Every value of every switch, every method shared and separate, and condensed."""

    def choices(model: type, key: str) -> set[object]:
        return set(get_args(get_type_hints(model)[key]))

    used = {f.name: {getattr(r, f.name) for r in RECIPES} for f in dataclasses.fields(RECIPES[0])}
    for key in ("share", "aggregate", "fuse", "first"):
        assert used[key] == choices(LadderConfig, key), key
    assert used["kind"] == choices(PromptConfig, "kind")
    assert used["bits"] == {None, 1, 2, 4, 8}
    assert used["project"] == used["couple"] == {True, False}
    pairs = {(r.kind, r.share != "none") for r in RECIPES}
    assert pairs == set(itertools.product(used["kind"], (True, False)))
    kept = {r.kind for r in RECIPES if r.keep is not None}
    assert kept == {kind for kind, row in KINDS.items() if row.condense}
    counts = {(len(r.image), len(r.text)) for r in RECIPES}
    assert {(1, 2), (2, 1), (2, 2)} <= counts


def test_an_operator_without_a_rule_is_named():
    class Odd(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cos(x)

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Odd()

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.inner(x),)

    size = torch.export.Dim("B", min=2, max=99)
    with pytest.raises(EdgeLadderError, match="no ONNX rule for operator 'cos'") as caught:
        lower(Outer(), [torch.ones(3, 2)], ({0: size},), ["x"], ["y"], "odd")
    assert "'cos'" in str(caught.value.where) and "inner" in str(caught.value.where)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_stacked_and_stepped_values_stand_where_torch_puts_them(axis: int) -> None:
    """What a rotary embedding does: every other value, negated, beside its neighbour."""

    class Rotate(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.stack([-x[..., 1::2], x[..., ::2]], axis),)

    size = torch.export.Dim("B", min=2, max=99)
    graph = lower(Rotate(), [torch.ones(3, 4)], ({0: size},), ["x"], ["y"], "rotate")
    x = torch.arange(20.0).reshape(5, 4)
    found = execute(graph, {"x": x.numpy()})
    np.testing.assert_array_equal(found["y"], Rotate()(x)[0].numpy())
