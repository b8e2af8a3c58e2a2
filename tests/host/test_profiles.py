"""Every shipped profile, and every combination of switches: it starts at zero-shot and can learn,
or it is refused with the reason."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from torch.nn import functional

from edgeladder.core.config import HeadConfig, Profile
from edgeladder.core.errors import ConfigError
from edgeladder.core.manifest import TapRecord
from edgeladder.core.prompt_kinds import KINDS, refused
from edgeladder.core.yaml_config import library, load_profile, override
from edgeladder.host.export import tap_config
from edgeladder.host.model.ladder import Ladder, Objective

DIM, PRE, WIDTHS = 24, 40, {"image": 48, "text": 32}


@pytest.fixture(autouse=True)
def _one_thread():
    """So small are these ladders that threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def taps(profile: Profile, side: str) -> list[TapRecord]:
    """What a tower of twelve blocks would give a profile."""
    config = tap_config(profile, side)
    count = config.count if config.blocks is None else len(config.blocks)
    tokens = int(config.class_token) + (config.grid**2 if side == "image" else config.grid)
    return [
        TapRecord(name=f"tap_{block}", block=block, tokens=tokens, width=WIDTHS[side])
        for block in range(count)
    ]


def objective(profile: Profile) -> Objective:
    """The profile's ladder on such towers, untrained."""
    torch.manual_seed(0)
    image, text = (taps(profile, side) for side in ("image", "text"))
    return Objective(Ladder(profile.ladder, image, text, DIM, PRE), 10.0)


def inputs(ladder: Ladder) -> list:
    """Three pictures of four classes."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    given: list = []
    for side, count in zip(ladder.sides, (3, 4), strict=True):
        given.append([normal(len(g.taps), g.tokens, count, g.width) for g in side.groups])
        given.append(functional.normalize(normal(count, DIM), dim=-1))
    given.append(torch.eye(4)[:3])
    return [*given, normal(3, PRE)] if ladder.project is not None else given


def check(profile: Profile) -> None:
    """Zero-shot at the start; away from it, every parameter learns."""
    made = objective(profile)
    given = inputs(made.ladder)
    loss, image, text = made(*given)
    torch.testing.assert_close(image, given[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(text, given[3], rtol=0, atol=1e-6)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    made(*given)[0].backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("name", library("profiles"))
def test_a_profile_says_how_it_is_launched_and_whose_it_is(name):
    text = library("profiles")[name].read_text(encoding="utf-8")
    commands = [line for line in text.splitlines() if line.startswith("# edgeladder ")]
    assert commands and text.startswith(commands[0])
    assert any(re.search(rf"--profile {name}\b", line) for line in commands)
    profile = load_profile(name)
    assert profile.name == name and profile.summary and profile.paper


@pytest.mark.parametrize("name", library("profiles"))
def test_a_profiles_ladder_begins_at_zero_shot_and_learns(name):
    check(load_profile(name))


def test_every_method_has_a_profile():
    profiles = [load_profile(name) for name in library("profiles")]
    prompts = [profile.ladder.prompts for profile in profiles]
    assert {p.kind for p in prompts} == set(KINDS)
    assert any(p.bits for p in prompts) and any((p.keep or 1) < 1 for p in prompts)
    assert "prototypes" in {p.initialize for p in prompts}
    ladders = [profile.ladder for profile in profiles]
    assert {"last", "unipt", "sherl"} <= {item.aggregate for item in ladders}
    assert {"importance", "fisher"} <= {item.initialize for item in ladders}
    assert any(item.project for item in ladders) and any(item.fuse == "gate" for item in ladders)
    assert {"gda", "proker", "kernel"} <= {p.head.kind for p in profiles if p.head.alone}
    assert any(p.loss.proximal and p.loss.anchor for p in profiles)
    assert any(p.train.average for p in profiles) and any(p.train.views for p in profiles)


SWITCHES = {
    "ladder.prompts.kind": sorted(KINDS),
    "ladder.prompts.bits": [None, 1],
    "ladder.prompts.keep": [None, 0.3],
    "ladder.prompts.couple": [True, False],
    "ladder.aggregate": ["last", "sherl"],
    "ladder.share": ["none", "trunk", "trunk+up"],
}


@pytest.mark.parametrize("kind", SWITCHES["ladder.prompts.kind"])
def test_methods_combine_or_say_why_not(kind):
    """All combinations are resolved; of each kind a seventh, spread over all switches, is run."""
    tiny = load_profile("tiny")
    others = [name for name in SWITCHES if name != "ladder.prompts.kind"]
    for number, chosen in enumerate(itertools.product(*(SWITCHES[name] for name in others))):
        values = {"ladder.prompts.kind": kind, **dict(zip(others, chosen, strict=True))}
        settings = [f"{k}={'null' if v is None else v}" for k, v in values.items()]
        bits, keep = values["ladder.prompts.bits"], values["ladder.prompts.keep"]
        reason = refused(kind, bits=bits, keep=keep, initialize="random")
        if reason:
            with pytest.raises(ConfigError, match=reason) as caught:
                override(tiny, settings)
            assert caught.value.exit_code == 2
            continue
        profile = override(tiny, settings)
        if number % 7 == 0:
            check(profile)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["ladder.prompts.kind=none", "ladder.prompts.initialize=prototypes"], "initialize given"),
        (["ladder.taps.count=1", "ladder.aggregate=unipt"], "one tap makes one rung"),
        (["head.alone=true"], "kind is none"),
        (["head.folds=4"], "kind is none"),
        (["head.kind=gda", "head.folds=1"], "leaves nothing to train on"),
        (["head.kind=gda", "head.folds=3", "head.weight=1"], "weight fixes it"),
        (["head.kind=gda", "head.folds=3", "head.alone=true"], "there is no ladder"),
        (["head.kind=gda", "head.weight=3", "head.alone=true"], "the head is alone"),
        (["train.optimizer=sgd", "train.moments=int8"], "moments int8 are AdamW's"),
        (["ladder.width=50", "ladder.heads=4"], "not a multiple of heads"),
        (["ladder.prompts.bits=3"], r"ladder\.prompts\.bits"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(settings, reason):
    with pytest.raises(ConfigError, match=reason) as caught:
        load_profile("tiny", settings)
    assert caught.value.exit_code == 2


def test_a_head_that_is_set_to_none_takes_its_settings_along():
    profile = load_profile("default", ["head.kind=none"])
    assert profile.head == HeadConfig(known=profile.head.known)
    with pytest.raises(ConfigError, match="kind is none"):
        load_profile("default", ["head.kind=none", "head.weight=2"])
