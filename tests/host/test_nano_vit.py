"""nano-vit: nano's text side around a vision transformer; nothing of it is shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeladder.core.config import TapConfig
from edgeladder.core.errors import ConfigError, DataError
from edgeladder.host.model import nano_model as nano
from edgeladder.host.model import nano_vit
from edgeladder.host.model.backbone import Backbone, load_backbone, resolve_taps
from edgeladder.host.model.timm_towers import TimmImageTower
from tools.nano import ship, vit
from tools.nano.settings import Settings


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone("nano-vit", "none")


def test_its_blocks_are_a_vits(backbone: Backbone) -> None:
    assert isinstance(backbone.image, TimmImageTower)
    assert (backbone.image.blocks, backbone.image.width(0)) == (12, 192)
    assert backbone.preprocess.mean == backbone.preprocess.std == [0.5, 0.5, 0.5]
    weights = backbone.block_weights("image", 5)
    assert weights is not None and weights["qkv_weight"].shape == (3 * 192, 192)
    assert backbone.block_weights("text", 2) is not None
    assert backbone.embedding_dim == nano.PARTS * nano.PART


def test_its_picture_is_the_class_token(backbone: Backbone) -> None:
    """open_clip would pool the mean of the patches, which the 1,000-class head has never seen."""
    network = backbone.model
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        state = network.visual.trunk.forward_features(pixels)
        expected = network.visual.head(state[:, 0])
        torch.testing.assert_close(network.visual(pixels), expected)
        taps = resolve_taps(backbone, "image", TapConfig(count=2))
        found = backbone.image.reference(pixels, taps, TapConfig(count=2))
    assert [tap.block for tap in taps] == [5, 11]
    assert found["tap_5"].shape == (2, 5, 192)


def test_no_weights_are_shipped() -> None:
    with pytest.raises(ConfigError, match="without weights") as caught:
        nano_vit.load(None)
    assert "tools/nano/build --tower vit-tiny" in str(caught.value.remedy)
    with pytest.raises(ConfigError, match="no weights file"):
        nano_vit.load("somewhere/else.safetensors")


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(DataError, match="not the weights of nano-vit"):
        nano_vit.load(str(nano.folder() / "weights.safetensors"))


@pytest.fixture(scope="module")
def teacher() -> torch.nn.Module:
    import timm

    torch.manual_seed(3)
    network: torch.nn.Module = timm.create_model(nano_vit.TRUNK.name, pretrained=False)
    torch.nn.init.normal_(network.get_parameter("head.weight"))
    return network.eval().requires_grad_(False)


def test_the_recipe_keeps_both_towers(teacher: torch.nn.Module, tmp_path: Path) -> None:
    network = vit.around(teacher, Settings(name_share=0.2, kind_share=0.3))
    head = network.visual.head[0]
    rows = teacher.get_parameter("head.weight")
    torch.testing.assert_close(head.classify.weight.data, rows)
    centred = rows - rows.mean(0)
    kept = head.project(centred).square().sum() / centred.square().sum()
    assert 0.7 < kept < 1, "128 of 192 leading directions, of length 1"
    assert head.balance.tolist() == pytest.approx([0.2, 0.3, 0.5])
    path = tmp_path / "made" / "nano-vit.safetensors"
    vit.write(network, Settings(), path)
    found = nano_vit.load(str(path)).model
    text = torch.tensor([[1, 5, 7, len(nano.vocabulary()) - 1, *[0] * 20]])
    shipped = nano.load().model
    with torch.no_grad():
        torch.testing.assert_close(found.text(text), network.text(text))
        part = nano.PART  # the first part of a text is its own vector, as nano's
        mine, theirs = found.text(text)[:, :part], shipped.text(text)[:, :part]
        cosine = torch.nn.functional.cosine_similarity(mine, theirs)
    np.testing.assert_allclose(cosine, 1, atol=1e-5)
    with torch.no_grad():
        pixels = torch.ones(1, 3, 224, 224)
        expected = teacher.forward_features(pixels)
        torch.testing.assert_close(found.visual.trunk.forward_features(pixels), expected)


def test_the_vit_is_read_under_timms_names(teacher: torch.nn.Module, tmp_path: Path) -> None:
    from tools.nano.teacher import vit_tiny

    state = teacher.state_dict()
    np.savez(tmp_path / "vit.npz", **{name: value.numpy() for name, value in state.items()})
    found = vit_tiny(tmp_path / "vit.npz").state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    del state["head.bias"]
    np.savez(tmp_path / "less.npz", **{name: value.numpy() for name, value in state.items()})
    with pytest.raises(RuntimeError, match="head.bias"):
        vit_tiny(tmp_path / "less.npz")


@pytest.mark.parametrize(
    "line", ["--tower vit-tiny", "--tower vit-tiny --weights a --out b --ship", "--out b"]
)
def test_options_of_the_other_tower_are_refused(line: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        ship.parse_arguments(line.split())
