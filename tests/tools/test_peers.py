"""The peers see the backbone open_clip sees, train nothing of it, and learn."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from edgeladder.core.errors import ConfigError  # noqa: E402
from tools.bench.peers import methods, run, towers  # noqa: E402

CLASSES = ["cat", "dog", "horse"]


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
    return towers.freeze(open_clip.model.CLIP(32, vision, text))


@pytest.fixture(scope="module")
def tokenize():
    return open_clip.get_tokenizer("ViT-B-32")


def test_without_prompts_the_features_are_open_clips(clip, tokenize):
    pixels, ids = torch.randn(2, 3, 32, 32), tokenize(["a photo of a cat.", "dog"])
    with torch.no_grad():
        image, text = towers.image_features(clip, pixels), towers.text_features(clip, ids)
        torch.testing.assert_close(image, clip.encode_image(pixels, normalize=True))
        torch.testing.assert_close(text, clip.encode_text(ids, normalize=True))


def test_nano_is_read_as_it_computes():
    clip, preprocess, tokenize = run.open_model("nano", None)
    ids = tokenize(["x x of a cat.", "x x dog"])
    prompt = clip.text.token_embedding.weight[ids[0, 1:3]]
    pixels = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = clip.encode_text(ids, normalize=True)
        torch.testing.assert_close(towers.text_features(clip, ids, [prompt]), expected)
        image = towers.image_features(clip, pixels)
        torch.testing.assert_close(image, clip.encode_image(pixels, normalize=True))
        coop = methods.CoOp(clip, tokenize, CLASSES)
        torch.testing.assert_close(coop(pixels), coop.classify(image))
    assert (ids == ids.max()).sum() == 2, "one end of text a row"
    assert preprocess is not None


@pytest.fixture(scope="module")
def vit():
    """nano-vit with random weights: timm's vision transformer inside open_clip's classes."""
    return run.open_model("nano-vit", "none")


def test_timms_blocks_take_prompts_as_a_plain_loop(vit):
    clip, _, _ = vit
    trunk = clip.visual.trunk
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(2, 3, 224, 224, generator=generator)
    prompts = [torch.randn(2, 192, generator=generator) for _ in range(3)]
    with torch.no_grad():
        state = trunk._pos_embed(trunk.patch_embed(pixels))
        for number, block in enumerate(trunk.blocks):
            if number < 3:  # 197 tokens are the model's own
                state = torch.cat([state[:, :197], prompts[number].expand(2, -1, -1)], 1)
            state = block(state)
        read = clip.visual.head(trunk.norm(state)[:, 0])
        expected = torch.nn.functional.normalize(read, dim=-1)
        torch.testing.assert_close(towers.image_features(clip, pixels, prompts), expected)
        plain = towers.image_features(clip, pixels)
        assert not torch.allclose(plain, expected, atol=1e-3)
        none = [torch.zeros(0, 192)] * 12  # every block by hand, without a prompt
        torch.testing.assert_close(towers.image_features(clip, pixels, none), plain)
        torch.testing.assert_close(clip.encode_image(pixels, normalize=True), plain)


def test_peers_fit_timms_tower(vit):
    clip, _, tokenize = vit
    deep = methods.DeepVpt(clip, tokenize, CLASSES)
    assert deep.tokens.shape == (12, 8, 192)
    maple = methods.MaPLe(clip, tokenize, CLASSES)
    assert len(maple.couple) == 3, "nano's text tower has three blocks"
    loss = maple(torch.randn(1, 3, 224, 224)).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in maple.parameters())
    assert all(p.grad is None for p in clip.parameters())


def test_a_tower_without_blocks_takes_no_prompts():
    clip, _, tokenize = run.open_model("nano", None)
    with pytest.raises(ConfigError, match="takes no prompts"):
        methods.DeepVpt(clip, tokenize, CLASSES)


def test_a_prompt_equal_to_the_tokens_it_replaces_changes_nothing(clip, tokenize):
    ids = tokenize(["X X cat.", "X X dog."])
    prompt = clip.token_embedding.weight[ids[0, 1:3]]
    with torch.no_grad():
        given = towers.text_features(clip, ids, [prompt])
        torch.testing.assert_close(given, clip.encode_text(ids, normalize=True))


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_peer_learns_and_leaves_the_backbone(clip, tokenize, name):
    torch.manual_seed(1)
    method = methods.METHODS[name](clip, tokenize, CLASSES)
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    labels = torch.arange(6) % 3
    pixels = torch.randn(3, 3, 32, 32)[labels] + 0.1 * torch.randn(6, 3, 32, 32)
    first = torch.nn.functional.cross_entropy(method(pixels), labels).item()
    steps, _ = run.train(method, pixels, labels, epochs=30, seed=0)
    last = torch.nn.functional.cross_entropy(method(pixels), labels).item()
    assert steps == 30 * (2 if name == "maple" else 1)
    assert last < first
    assert all(torch.equal(before[k], v) for k, v in clip.state_dict().items())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_epochs_are_the_papers():
    assert run.epochs_of(methods.CoOp.recipe, 1) == 50
    assert run.epochs_of(methods.CoOp.recipe, 4) == 100
    assert run.epochs_of(methods.CoOp.recipe, 16) == 200
    assert run.epochs_of(methods.MaPLe.recipe, 16) == 5
