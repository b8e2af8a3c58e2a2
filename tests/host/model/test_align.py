"""How texts enter a trunk of image blocks, and the gated first state."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from edgeladder.core.config import LadderConfig, TapConfig
from edgeladder.core.records import from_json
from edgeladder.host.model.align import align
from edgeladder.host.model.backbone import resolve_taps
from edgeladder.host.model.initialize import Probes, initialize
from edgeladder.host.model.ladder import Ladder
from edgeladder.host.model.probe import noise, readout
from tests.host.model.small_models import CONTEXT, WORDS, small_backbone

KINDS = ("match", "procrustes", "ridge")
WIDTH = 16


@pytest.fixture(scope="module")
def backbone():
    return small_backbone("openai")


@pytest.fixture(scope="module")
def texts():
    tokens = torch.randint(1, WORDS - 2, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
    tokens[:, 0], tokens[:, -1] = WORDS - 2, WORDS - 1
    return tokens


def build(backbone, **values):
    config = from_json(LadderConfig, {"width": WIDTH, "heads": 2, "hidden": 2, **values})
    taps = [resolve_taps(backbone, side, TapConfig(count=2)) for side in ("image", "text")]
    torch.manual_seed(0)
    return Ladder(config, *taps, backbone.embedding_dim).requires_grad_(False)


def test_a_readout_is_the_slope_of_the_embedding(backbone, texts):
    """Through the whole tower: the bias that the last block adds to every token."""
    found = readout(backbone.text, texts)
    last = backbone.model.transformer.resblocks[-1].mlp.c_proj.bias

    def embed():
        with torch.no_grad():
            return functional.normalize(backbone.model.encode_text(texts), dim=-1).mean(0)

    assert found.shape == (backbone.embedding_dim, len(last))
    for channel in (0, 7):
        kept, ends = float(last[channel]), []
        for step in (0.01, -0.01):
            last[channel] = kept + step
            ends.append(embed())
        last[channel] = kept
        slope = (ends[0] - ends[1]) / 0.02
        torch.testing.assert_close(found[:, channel], slope, rtol=2e-2, atol=2e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_tower_that_is_the_image_tower_reordered_is_put_in_order(kind):
    generator = torch.Generator().manual_seed(2)
    image = torch.randn(40, WIDTH, generator=generator)
    order = torch.randperm(WIDTH, generator=generator)
    signs = torch.tensor([1.0, -1.0]).repeat(WIDTH // 2)
    made = align(kind, image, (image * signs)[:, order])
    expected = torch.zeros(WIDTH, WIDTH)
    expected[torch.arange(WIDTH), order] = signs[order]
    torch.testing.assert_close(made, expected, rtol=0, atol=0.05 if kind == "ridge" else 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [8, 16, 24])
def test_columns_have_length_one_at_any_width(kind, text):
    generator = torch.Generator().manual_seed(3)
    made = align(
        kind,
        torch.randn(40, WIDTH, generator=generator),
        torch.randn(40, text, generator=generator),
    )
    torch.testing.assert_close(made.norm(dim=0), torch.ones(WIDTH))
    if kind == "procrustes" and text >= WIDTH:
        torch.testing.assert_close(made.T @ made, torch.eye(WIDTH), rtol=0, atol=1e-5)


def test_ridge_gives_the_coordinates_that_give_the_texts_embedding():
    generator = torch.Generator().manual_seed(4)
    image = torch.randn(WIDTH, WIDTH, generator=generator)
    text = torch.randn(WIDTH, 24, generator=generator)
    made = align("ridge", image, text)
    hidden = torch.randn(5, 24, generator=generator)
    wanted = hidden @ text.T
    solution = torch.linalg.solve(
        image.T @ image + 0.01 * (image**2).sum(0).mean() * torch.eye(WIDTH), image.T @ text
    ).T
    torch.testing.assert_close(made, functional.normalize(solution, dim=0))
    near = functional.cosine_similarity(hidden @ solution @ image.T, wanted)
    assert float(near.min()) > 0.8


@pytest.mark.parametrize("kind", ["select", "semi_orthogonal", *KINDS])
def test_each_alignment_is_the_texts_map_alone(backbone, texts, kind):
    plain, ladder = build(backbone), build(backbone, align=kind)
    initialize(plain, backbone)
    assert initialize(ladder, backbone, probes=Probes(texts)) == 2
    changed = {
        name
        for name, value in ladder.state_dict().items()
        if not torch.equal(value, plain.state_dict()[name])
    }
    assert changed == (set() if kind == "select" else {"text_down.weights.0"})
    if kind in KINDS:
        kept = ladder.image_down.weights[0][0].argmax(0)
        generator = torch.Generator().manual_seed(0)
        image = readout(backbone.image, noise(backbone.image, generator))
        expected = align(kind, image[:, kept], readout(backbone.text, texts))
        for piece in ladder.text_down.weights[0]:
            torch.testing.assert_close(piece, expected)


def test_separate_rungs_keep_their_own_channels(backbone):
    plain, ladder = (build(backbone, share="none", align=kind) for kind in ("select", "ridge"))
    assert initialize(plain, backbone) == initialize(ladder, backbone) == 4
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(ladder.state_dict()[name], value)


@pytest.mark.parametrize("share", ["none", "trunk"])
def test_the_first_state_is_half_the_tap_where_it_is_gated(backbone, share):
    """sigmoid(0): the ladder whose first `down` maps are halved, where nothing else reads them."""
    gated = build(backbone, first="gated", share=share)
    halved = build(backbone, share=share)
    missing = halved.load_state_dict(gated.state_dict(), strict=False)
    assert missing.unexpected_keys == ["image_gate", "text_gate"] and not missing.missing_keys
    for ladder in (gated, halved):
        for name in ("image_up", "text_up"):
            torch.manual_seed(1)
            getattr(ladder, name).normal_()
    for down in (halved.image_down, halved.text_down):
        down.weights[0][0] *= 0.5
        down.bias[0][0] *= 0.5
    generator = torch.Generator().manual_seed(1)
    taps = [
        [torch.randn(len(g.taps), g.tokens, 4, g.width, generator=generator) for g in side.groups]
        for side in gated.sides
    ]
    unit = functional.normalize(torch.randn(2, 4, 24, generator=generator), dim=-1)
    for mine, other in zip(
        gated(taps[0], unit[0], taps[1], unit[1]),
        halved(taps[0], unit[0], taps[1], unit[1]),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)
