"""Rungs cut from the backbone's blocks by importance: magnitude, and Fisher information."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from edgeladder.core.config import LadderConfig, TapConfig
from edgeladder.core.errors import ConfigError
from edgeladder.core.records import from_json
from edgeladder.core.yaml_config import load_profile
from edgeladder.host.export import ExportOptions, export
from edgeladder.host.model.backbone import resolve_taps
from edgeladder.host.model.fisher import fisher
from edgeladder.host.model.initialize import initialize
from edgeladder.host.model.ladder import Ladder
from tests.host.model.small_models import CONTEXT, WORDS, small_backbone


@pytest.fixture(scope="module")
def backbone():
    return small_backbone("openai")


@pytest.fixture(scope="module")
def sample():
    """Six pictures of three classes, and the classes' tokens."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(6, 3, 32, 32, generator=generator)
    tokens = torch.randint(1, WORDS - 2, (3, CONTEXT), generator=generator)
    tokens[:, 0], tokens[:, -1] = WORDS - 2, WORDS - 1
    return pixels, torch.arange(6) % 3, tokens


def build(backbone, **values):
    config = from_json(LadderConfig, {"width": 16, "heads": 2, "hidden": 2, **values})
    taps = [resolve_taps(backbone, side, TapConfig(count=2)) for side in ("image", "text")]
    torch.manual_seed(0)
    return Ladder(config, *taps, backbone.embedding_dim)


def chosen(down):
    """The channels that a selection matrix passes."""
    return [piece.argmax(0).tolist() for weight in down.weights for piece in weight]


def test_fisher_is_the_mean_squared_gradient(backbone, sample):
    pixels, labels, tokens = sample
    found = fisher(backbone, pixels, labels, tokens)
    assert {side for side, _ in found} == {"image", "text"}
    weight = backbone.block_weights("image", 1)["fc1_weight"]
    assert not weight.requires_grad
    weight.requires_grad_(True)
    total = torch.zeros_like(weight)
    for picture, label in zip(pixels, labels, strict=True):
        image = functional.normalize(backbone.model.encode_image(picture[None]), dim=-1)
        text = functional.normalize(backbone.model.encode_text(tokens), dim=-1).detach()
        logits = backbone.logit_scale * image @ text.T
        (slope,) = torch.autograd.grad(functional.cross_entropy(logits, label[None]), weight)
        total += slope**2
    weight.requires_grad_(False)
    torch.testing.assert_close(found["image", 1]["fc1"], total / 6, rtol=1e-4, atol=1e-9)


def test_fisher_of_the_text_tower_is_over_classes(backbone, sample):
    pixels, labels, tokens = sample
    found = fisher(backbone, pixels, labels, tokens)["text", 0]["qkv"]
    weight = backbone.block_weights("text", 0)["qkv_weight"].requires_grad_(True)
    image = functional.normalize(backbone.model.encode_image(pixels), dim=-1)
    text = functional.normalize(backbone.model.encode_text(tokens), dim=-1)
    logits = backbone.logit_scale * image @ text.T
    total = torch.zeros_like(weight)
    for label in range(3):
        loss = functional.cross_entropy(logits[labels == label], labels[labels == label])
        total += torch.autograd.grad(loss, weight, retain_graph=True)[0] ** 2
    weight.requires_grad_(False)
    torch.testing.assert_close(found, total / 3, rtol=1e-4, atol=1e-9)


def test_what_matters_is_kept(backbone):
    """Importance that singles out channels, heads and units decides which are kept."""
    blocks = {side: backbone.tower(side).blocks for side in ("image", "text")}
    importance, wanted = {}, {}
    random = np.random.default_rng(0)
    for side, count in blocks.items():
        width = backbone.block_weights(side, 0)["ln1_weight"].shape[0]
        wanted[side] = sorted(random.permutation(width)[:16].tolist())
        for block in range(count):
            weights = backbone.block_weights(side, block)
            roles = {}
            for role in ("qkv", "fc1"):
                roles[role] = torch.zeros_like(weights[f"{role}_weight"])
                roles[role][:, wanted[side]] = 1.0
            roles["fc1"][5:37] += 1.0  # hidden units
            importance[side, block] = roles
    ladder = build(backbone, share="none")
    assert initialize(ladder, backbone, importance=importance) == 4
    assert chosen(ladder.image_down) == [wanted["image"]] * 2
    assert chosen(ladder.text_down) == [wanted["text"]] * 2
    block = backbone.block_weights("image", ladder.image.taps[0].block)
    first = block["fc1_weight"][5:37][:, wanted["image"]] * block["ln2_weight"][wanted["image"]]
    found = ladder.image_rungs[0].up.T
    ratio = found / first
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-3, atol=0)
    by_size = build(backbone, share="none")
    initialize(by_size, backbone)
    assert chosen(by_size.image_down) != chosen(ladder.image_down)


def test_it_still_begins_at_zero_shot(backbone, sample):
    ladder = build(backbone)
    initialize(ladder, backbone, importance=fisher(backbone, *sample))
    generator = torch.Generator().manual_seed(1)
    taps = [
        [torch.randn(len(g.taps), g.tokens, 4, g.width, generator=generator) for g in side.groups]
        for side in ladder.sides
    ]
    unit = functional.normalize(
        torch.randn(2, 4, backbone.embedding_dim, generator=generator), dim=-1
    )
    image, text = ladder(taps[0], unit[0], taps[1], unit[1])
    torch.testing.assert_close(image, unit[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(text, unit[1], rtol=0, atol=1e-6)


def test_pictures_and_fisher_go_together(tmp_path):
    fishery = load_profile("tiny", ["ladder.initialize=fisher"])
    with pytest.raises(ConfigError, match="needs pictures") as caught:
        export("ViT-B/16", "none", fishery, out=tmp_path / "b")
    assert "--calibration" in caught.value.remedy
    pictures = ExportOptions(calibration=tmp_path)
    with pytest.raises(ConfigError, match="uses no calibration pictures"):
        export("ViT-B/16", "none", load_profile("tiny"), pictures, out=tmp_path / "b")
