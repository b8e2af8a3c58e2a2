"""A rung against its block: the block itself at full width, a plain cut of it at others."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from timm.models.vision_transformer import Block
from torch.nn import functional

from edgeladder.core.config import LadderConfig
from edgeladder.core.records import from_json
from edgeladder.host.model.clip_towers import clip_block_weights
from edgeladder.host.model.cut import cut, kept_channels
from edgeladder.host.model.prompts import build_prompts
from edgeladder.host.model.rung import Rung
from edgeladder.host.model.timm_towers import timm_block_weights

WIDTH, HEADS, UNITS = 32, 4, 128
TOKENS, SAMPLES = 5, 3
CLOSE = 1e-5


def block_of(make, activation=QuickGELU, scale=None):
    """A block of random weights, no bias or norm at its plain start; and its weights by role."""
    torch.manual_seed(5)
    if make == "open_clip":
        block = ResidualAttentionBlock(WIDTH, HEADS, ls_init_value=scale, act_layer=activation)
    else:
        block = Block(WIDTH, HEADS, qkv_bias=True, init_values=scale, act_layer=activation)
    with torch.no_grad():
        for name, value in block.named_parameters():
            if value.ndim < 2:
                value.add_(torch.randn_like(value) * 0.5)
            elif "weight" in name:
                value.copy_(torch.randn_like(value) * 1.5 * value.shape[1] ** -0.5)
    weights = clip_block_weights(block) if make == "open_clip" else timm_block_weights(block)
    return block.eval().requires_grad_(False), {k: detached(v) for k, v in weights.items()}


def detached(value):
    return value.detach() if isinstance(value, torch.Tensor) else value


def rung_of(weights, width, heads, hidden):
    """A rung cut from a block, and the channels it kept."""
    values = {"width": width, "heads": heads, "hidden": hidden, "prompts": {"kind": "none"}}
    config = from_json(LadderConfig, values)
    rung = Rung(config, fused=False).requires_grad_(False)
    kept = kept_channels([weights], width)
    cut(rung, weights, kept)
    prompts = build_prompts(config, 1).prepare([], 1).of(0)

    def climb(x):
        rows = x.transpose(0, 1).reshape(-1, width)  # (N, T, w) -> tokens first
        out = rung(None, rows, [TOKENS], [SAMPLES], prompts)
        return out.reshape(TOKENS, SAMPLES, width).transpose(0, 1)

    return climb, kept


def sample(width):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, TOKENS, width, generator=generator) * 3 + 0.5


def top(strength, count):
    return sorted(sorted(range(len(strength)), key=lambda k: -float(strength[k]))[:count])


def plain_cut(w, x, channels, heads, units):
    """The formula of `cut.py` with every bias and norm where a block has it; x: (N, T, w)."""
    width, full, per_head = len(channels), WIDTH, WIDTH // HEADS
    inner = width // heads
    c = math.sqrt(full / width)
    norm = [
        lambda v, n=n: functional.layer_norm(
            v, (width,), w[f"{n}_weight"][channels], w[f"{n}_bias"][channels]
        )
        for n in ("ln1", "ln2")
    ]
    qkv, bias = w["qkv_weight"].reshape(3, full, full), w["qkv_bias"].reshape(3, full)
    strength = [float(qkv[:, h * per_head : (h + 1) * per_head].abs().sum()) for h in range(HEADS)]
    x1, after = norm[0](x), x.clone()
    after += w["out_bias"][channels]
    for head in top(strength, heads):
        mine = slice(head * per_head, (head + 1) * per_head)
        rows = [head * per_head + k for k in top(qkv[:, mine].abs().sum((0, 2)), inner)]
        q, k, v = (
            c * x1 @ matrix[rows][:, channels].T + b[rows]
            for matrix, b in zip(qkv, bias, strict=True)
        )
        mixed = torch.softmax(q @ k.transpose(1, 2) / math.sqrt(inner), -1) @ v
        after += c * mixed @ w["out_weight"][channels][:, rows].T
    best = top(w["fc1_weight"].abs().sum(1), units)
    hidden = c * norm[1](after) @ w["fc1_weight"][best][:, channels].T + w["fc1_bias"][best]
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    back = math.sqrt(UNITS / units) * hidden @ w["fc2_weight"][channels][:, best].T
    return after + back + w["fc2_bias"][channels]


@pytest.mark.parametrize("make", ["open_clip", "timm"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_a_rung_of_full_width_is_its_block(make, scale):
    block, weights = block_of(make, scale=scale)
    climb, kept = rung_of(weights, WIDTH, HEADS, 4)
    x = sample(WIDTH)
    assert kept.tolist() == list(range(WIDTH))
    expected = block(x)
    assert float((expected - x).abs().max()) > 1  # a block that does something
    torch.testing.assert_close(climb(x), expected, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("make", ["open_clip", "timm"])
def test_a_gelu_differs_by_what_silu_cannot_say(make):
    block, weights = block_of(make, activation=torch.nn.GELU)
    climb, _ = rung_of(weights, WIDTH, HEADS, 4)
    x = sample(WIDTH)
    gap = (climb(x) - block(x)).abs()
    most = 0.0204 * weights["fc2_weight"].abs().sum(1)  # of a unit, times what it is weighted with
    assert float(gap.max()) > 1e-4 and bool((gap <= most + CLOSE).all())


@pytest.mark.parametrize("make", ["open_clip", "timm"])
@pytest.mark.parametrize(
    ("width", "heads", "hidden"), [(32, 4, 4), (16, 2, 2), (16, 4, 4), (8, 2, 2)]
)
def test_a_narrower_rung_is_the_plain_cut(make, width, heads, hidden):
    _, weights = block_of(make)
    climb, kept = rung_of(weights, width, heads, hidden)
    read = sum(
        weights[f"{n}_weight"].abs() * weights[f"{role}_weight"].abs().sum(0)
        for n, role in (("ln1", "qkv"), ("ln2", "fc1"))
    )
    channels = top(read, width)
    assert kept.tolist() == channels
    x = sample(width)
    expected = plain_cut(weights, x, channels, heads, hidden * width)
    torch.testing.assert_close(climb(x), expected, rtol=CLOSE, atol=CLOSE)


def test_a_wider_rung_repeats_its_block():
    block, weights = block_of("open_clip")
    climb, kept = rung_of(weights, 2 * WIDTH, HEADS, 4)
    x = sample(WIDTH)
    torch.testing.assert_close(climb(x[..., kept]), block(x)[..., kept], rtol=CLOSE, atol=2e-5)


def test_more_heads_than_the_block_has_are_not_copies():
    _, weights = block_of("open_clip")
    rung = Rung(from_json(LadderConfig, {"width": 16, "heads": 8}), fused=False)
    cut(rung.requires_grad_(False), weights, kept_channels([weights], 16))
    queries = rung.query.reshape(16, 16).T  # a row of the block's query in each
    apart = (queries[:, None] - queries[None]).abs().sum(-1) + torch.eye(16)
    assert float(apart.min()) > 0.01


def test_blocks_of_another_make_are_left_alone():
    normed = Block(WIDTH, HEADS, qk_norm=True)
    assert timm_block_weights(normed) is None
    assert timm_block_weights(Block(WIDTH, HEADS, qkv_bias=False)) is not None
