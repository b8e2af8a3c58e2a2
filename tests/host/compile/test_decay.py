"""Which parameters weight decay shrinks."""

from __future__ import annotations

from edgeladder.host.compile.artifact import decays
from tests.host.compile.ladders import Recipe, build


def undecayed(kind: str) -> set[str]:
    ladder = build(Recipe(kind))
    named = {name: tuple(value.shape) for name, value in ladder.named_parameters()}
    return {name for name, shape in named.items() if not decays(ladder, name, shape)}


def test_biases_gates_and_gains_of_prompts_do_not_decay():
    found = undecayed("token")
    assert {"rungs.1.gate", "rungs.0.query_bias", "image_down.bias.0"} <= found
    assert all("bias" in name or name.endswith(".gate") for name in found)
    assert {"rungs.0.out_bias", "rungs.0.down_bias"} <= found
    assert undecayed("diffusion") == found | {"prompts.scale"}
