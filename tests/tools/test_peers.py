"""The peers see the backbone open_clip sees, train nothing of it, and learn."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from edgeladder.core.errors import ConfigError  # noqa: E402
from tools.bench.peers import (  # noqa: E402
    cost,
    features,
    measured,
    methods,
    probes,
    run,
    side_by_side,
    table,
    tasks,
    towers,
    training,
)

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


@pytest.mark.parametrize("name", probes.ALL)
def test_a_predictor_with_its_classes_encoded_once_says_the_same(clip, tokenize, name):
    torch.manual_seed(2)
    method = probes.ALL[name](clip, tokenize, CLASSES)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(method.predictor()(pixels), method(pixels))


@pytest.mark.parametrize("name", probes.ALL)
def test_a_peer_learns_and_leaves_the_backbone(clip, tokenize, name):
    torch.manual_seed(1)
    method = probes.ALL[name](clip, tokenize, CLASSES)
    before = {k: v.clone() for k, v in clip.state_dict().items()}
    labels = torch.arange(6) % 3
    pixels = torch.randn(3, 3, 32, 32)[labels] + 0.1 * torch.randn(6, 3, 32, 32)
    first = torch.nn.functional.cross_entropy(method(pixels), labels).item()
    trained = training.train(method, pixels, labels, epochs=30, seed=0)
    last = torch.nn.functional.cross_entropy(method(pixels), labels).item()
    assert trained.steps == 30 * (2 if method.recipe.batch == 4 else 1)
    assert trained.last_loss < trained.first_loss
    assert last < first
    assert all(torch.equal(before[k], v) for k, v in clip.state_dict().items())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.parameters())


def test_epochs_are_the_papers():
    assert training.epochs_of(methods.CoOp.recipe, 1) == 50
    assert training.epochs_of(methods.CoOp.recipe, 4) == 100
    assert training.epochs_of(methods.CoOp.recipe, 16) == 200
    assert training.epochs_of(methods.MaPLe.recipe, 16) == 5


def test_half_of_the_classes_are_new(picture_folder):
    task = tasks.open_task(picture_folder, 2, 0, per_class=1, halves=True)
    assert task.new is not None
    assert (len(task.classes), len(task.new.classes)) == (2, 1), "the larger half is the base"
    assert {p.label for p in task.support} == set(task.classes)
    assert {p.label for p in task.new.tested} == set(task.new.classes)
    assert task.labels(task.support).tolist() == [0, 0, 1, 1]
    assert task.new.labels(task.new.tested).tolist() == [0]
    whole = tasks.open_task(picture_folder, 2, 0, per_class=1)
    assert whole.new is None and len(whole.tested) == 3
    assert run.harmonic(0.5, 1.0) == pytest.approx(2 / 3) and run.harmonic(0.0, 0.0) == 0.0


def test_features_are_computed_once(clip, picture_folder, tmp_path):
    import numpy as np

    def view(picture):
        return torch.from_numpy(np.asarray(picture.resize((32, 32)), np.float32).transpose(2, 0, 1))

    wanted = tasks.open_task(picture_folder, 2, 0).support
    store = features.FeatureStore(clip, view, tmp_path / "kept.npz")
    found = store.of(wanted)
    with torch.no_grad():
        direct = towers.image_features(clip, features.pixels_of(wanted, view))
    torch.testing.assert_close(found, direct)
    again = features.FeatureStore(None, None, tmp_path / "kept.npz")
    torch.testing.assert_close(again.of(wanted[::-1]), found.flip(0))
    assert again.count == len(wanted) and again.cost(2)[0] == pytest.approx(2 * store.seconds)


def test_rows_are_balanced_over_seeds(tmp_path):
    import argparse
    from pathlib import Path

    given = argparse.Namespace(
        seeds=2, shots=[16, 1], methods=["coop", "vpt-deep"], at_most=["vpt-deep=1"]
    )
    found = [cell.key for cell in side_by_side.cells(given, [Path("a"), Path("b")])]
    assert len(found) == 2 * (2 + 4)
    assert found[:2] == [("a", "16", "0", "coop"), ("b", "16", "0", "coop")]
    assert [key[2] for key in found] == ["0"] * 6 + ["1"] * 6


def test_pictures_are_laid_out_once_and_alike(picture_folder, tmp_path):
    target = side_by_side.lay_out(picture_folder, tmp_path / "laid", per_class=1)
    found, before = tasks.open_task(target, 2, 0), tasks.open_task(picture_folder, 2, 0)
    assert [p.split for p in found.tested] == ["test"] * 3
    assert found.names == before.names
    first = tasks.first_of(before.tested, 1)
    assert [p.read() for p in found.tested] == [p.read() for p in first]
    (target / "mark").touch()
    assert side_by_side.lay_out(picture_folder, target, per_class=1) == target
    assert (target / "mark").exists()


def test_a_tree_is_measured():
    import sys

    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}]); print(1)"
    inner = "x = bytearray(60_000_000); import time; time.sleep(0.4)"
    found = measured.run_measured([sys.executable, "-c", code.format(inner)], {})
    assert (found.code, found.output.strip()) == (0, "1")
    assert found.peak_rss > 60e6, "the child's memory counts"
    assert measured.run_measured([sys.executable, "-c", "raise SystemExit(3)"], {}).code == 3


def test_tables_give_means_and_leave_gaps():
    first = {"dataset": "a", "shots": "4", "seed": "0", "method": "coop", "accuracy": "0.5"}
    second = first | {"seed": "1", "accuracy": "0.6", "cpu_seconds": "3"}
    costs = {"train_peak_rss_bytes": "700e6", "loaded_rss_bytes": "500e6"}
    other = first | {"dataset": "b", "method": "maple", "accuracy": "0.25"} | costs
    lines = table.table([first, second, other]).splitlines()
    assert lines[0] == "4 shots, 2 seeds"
    assert lines[4].startswith("| coop | 55.0 | - | 3.0 | - |")
    assert lines[5].startswith("| maple | - | 25.0 | - | 700 | 200 |")


def test_costs_are_taken_in_turns():
    assert list(cost.turns(2, ["a", "b"])) == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]


def test_ratios_are_of_medians_and_of_the_least_prompt_tuner():
    def row(method, seconds, peak_mb, speed=None, **more):
        numbers = {"seconds": seconds, "peak_bytes": peak_mb * 1e6}
        return {"method": method, **numbers, "train_images_per_second": speed, **more}

    rows = [
        *(row("edgeladder-int8", seconds, 100, 500.0) for seconds in (10, 20, 90)),
        row("coop", 900, 4000, 2.0, extrapolated_steps=7),
        row("maple", 900, 3000),
        row("onnx-sklearn", 40, 300),
        {"method": "vpt-deep", "error": "no such file"},
    ]
    told = cost.table(rows)
    assert "| edgeladder-int8 | 3 | 20.0 | - | 100.0 | 500.0 |" in told and "vpt-deep" not in told
    assert "- memory of the least prompt tuner / edgeladder-int8: 30.0" in told
    assert "- onnx-sklearn / edgeladder-int8: 2.00 of the time, 3.00 of the memory" in told
    assert "- training pictures a second, edgeladder-int8 / coop: 250" in told
