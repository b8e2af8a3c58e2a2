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
from edgeladder.host.model.directions import basis, cut_directions, gram
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
    rung, climb = empty_rung(width, heads, hidden)
    kept = kept_channels([weights], width)
    cut(rung, weights, kept)
    return climb, kept


def turned_rung(weights, width, heads, hidden):
    """A rung in a block's principal directions of a sample, and those (W, w)."""
    rung, climb = empty_rung(width, heads, hidden)
    directions, share = basis(gram([sample(WIDTH).reshape(-1, WIDTH)], [weights]), width)
    cut_directions(rung, weights, directions, share)
    return climb, directions


def empty_rung(width, heads, hidden):
    values = {"width": width, "heads": heads, "hidden": hidden, "prompts": {"kind": "none"}}
    config = from_json(LadderConfig, values)
    rung = Rung(config, fused=False).requires_grad_(False)
    prompts = build_prompts(config, 1).prepare([], 1).of(0)

    def climb(x):
        rows = x.transpose(0, 1).reshape(-1, width)  # (N, T, w) -> tokens first
        out = rung(None, rows, [TOKENS], [SAMPLES], prompts)
        return out.reshape(TOKENS, SAMPLES, width).transpose(0, 1)

    return rung, climb


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


@pytest.mark.parametrize("make", ["open_clip", "timm"])
@pytest.mark.parametrize("hidden", [4, 5])
def test_a_rung_of_full_width_in_directions_is_its_block_turned(make, hidden):
    block, weights = block_of(make)
    climb, directions = turned_rung(weights, WIDTH, HEADS, hidden)
    torch.testing.assert_close(directions.T @ directions, torch.eye(WIDTH), rtol=0, atol=1e-5)
    x = sample(WIDTH)
    expected = block(x) @ directions
    torch.testing.assert_close(climb(x @ directions), expected, rtol=CLOSE, atol=3e-5)


def test_directions_keep_what_lies_in_them():
    """A stream of rank 7 beside its mean passes a rung of width 8 as through the whole block."""
    block, weights = block_of("open_clip")
    generator = torch.Generator().manual_seed(1)
    spread = torch.randn(7, WIDTH, generator=generator)
    x = torch.randn(SAMPLES, TOKENS, 7, generator=generator) @ spread + 0.3
    directions, share = basis(gram([x.reshape(-1, WIDTH)], []), 8)
    assert share == pytest.approx(1.0, abs=1e-4)
    torch.testing.assert_close(x @ directions @ directions.T, x, rtol=0, atol=1e-4)
    normed = functional.layer_norm(x, (WIDTH,))
    again = functional.layer_norm(x @ directions, (8,)) * math.sqrt(WIDTH / 8) @ directions.T
    torch.testing.assert_close(again, normed, rtol=0, atol=1e-4)


@pytest.mark.parametrize("width", [16, 8])
def test_directions_lose_less_of_a_block_than_channels(width):
    """On a stream that lies mostly in a few directions, as those of trained towers do."""
    block, weights = block_of("open_clip")
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=generator))[0]
    x = torch.randn(SAMPLES, TOKENS, WIDTH, generator=generator) * 0.8 ** torch.arange(WIDTH)
    x = 3 * x @ turn

    def missed(climb, into):
        step = (block(x) - x) @ into
        return float((climb(x @ into) - x @ into - step).norm() / step.norm())

    rung, turned = empty_rung(width, 4, 4)
    directions, share = basis(gram([x.reshape(-1, WIDTH)], [weights]), width)
    cut_directions(rung, weights, directions, share)
    climb, kept = rung_of(weights, width, 4, 4)
    assert missed(turned, directions) < 0.9 * missed(climb, torch.eye(WIDTH)[:, kept])


def test_a_head_is_the_best_one_of_its_rank():
    _, weights = block_of("open_clip")
    rung, _ = empty_rung(16, 8, 4)  # heads of 2 from heads of 8, each twice
    directions, share = basis(gram([sample(WIDTH).reshape(-1, WIDTH)], [weights]), 16)
    cut_directions(rung, weights, directions, share)
    gain = math.sqrt(share * WIDTH / 16)
    parts = [w * weights["ln1_weight"] @ directions * gain for w in weights["qkv_weight"].split(32)]
    moved = []
    for head in range(HEADS):
        mine = slice(8 * head, 8 * head + 8)
        full = parts[2][mine].T @ (weights["out_weight"].T @ directions)[mine]
        u, s, v = torch.linalg.svd(full)
        moved.append((u[:, :4] * s[:4]) @ v[:4])
    found = sum(
        rung.key_value[:, 16 + 2 * k : 18 + 2 * k] @ rung.out[2 * k : 2 * k + 2] for k in range(8)
    )
    torch.testing.assert_close(found, sum(moved), rtol=1e-4, atol=1e-4)
