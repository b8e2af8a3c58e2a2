"""Names, weights and blocks of backbones."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from edgeladder.core.config import TapConfig
from edgeladder.core.errors import ConfigError, DataError
from edgeladder.host.model.backbone import load_backbone, resolve_taps
from edgeladder.host.model.names import canonical, usual_tag
from tests.host.model.small_models import small_backbone
from tests.make_bundle import register_model


@pytest.mark.parametrize("spelling", ["ViT-B/16", "ViT-B-16", "vit-b-16"])
def test_both_spellings(spelling: str) -> None:
    assert canonical(spelling) == "ViT-B-16"


def test_unknown_model_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError) as caught:
        canonical("ViT-B/61")
    assert "did you mean" in str(caught.value) and caught.value.where == "--model"


def test_usual_tag_is_openais_where_there_is_one() -> None:
    assert usual_tag("ViT-B-16") == "openai"
    assert usual_tag("ViT-B-16-SigLIP") == "webli"


def test_random_weights_are_reproducible() -> None:
    name = register_model()
    one, two = (load_backbone(name, "none").model.state_dict() for _ in range(2))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_model_without_published_weights_says_so() -> None:
    with pytest.raises(ConfigError, match="no published weights") as caught:
        load_backbone(register_model())
    assert "--pretrained none" in str(caught.value)


def test_unknown_tag_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="neither a file nor a tag") as caught:
        load_backbone("ViT-B-32", "opanai")
    assert "openai" in str(caught.value)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_weights_from_a_file(tmp_path: Path, ending: str) -> None:
    name = register_model()
    state = load_backbone(name, "none").model.state_dict()
    changed = {
        key: value + 0.5 if value.is_floating_point() else value for key, value in state.items()
    }
    path = tmp_path / f"weights.{ending}"
    if ending == "pt":
        torch.save(changed, path)
    else:
        save_file(changed, path)
    loaded = load_backbone(name, str(path))
    assert all(torch.equal(value, changed[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.pretrained == path.name


class Exploit:
    """What unpickling must never run."""

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Path, ("/",)


def test_pickles_and_other_files_are_refused(tmp_path: Path) -> None:
    name = register_model()
    evil, text = tmp_path / "evil.pt", tmp_path / "notes.pt"
    torch.save({"weight": Exploit()}, evil, pickle_module=pickle)
    text.write_text("no weights")
    for path in (evil, text):
        with pytest.raises(DataError, match="cannot load weights") as caught:
            load_backbone(name, str(path))
        assert caught.value.where == str(path)


def test_taps_are_spread_and_end_at_the_last_block() -> None:
    backbone = load_backbone(register_model(), "none")
    assert [t.block for t in resolve_taps(backbone, "image", TapConfig(count=2))] == [1, 3]
    chosen = resolve_taps(backbone, "image", TapConfig(blocks=[-1, 0], grid=3))
    assert [(t.block, t.tokens, t.width) for t in chosen] == [(0, 10, 64), (3, 10, 64)]
    with pytest.raises(ConfigError, match="blocks 0 to 3"):
        resolve_taps(backbone, "image", TapConfig(blocks=[4]))


@pytest.mark.parametrize("make", ["openai", "siglip"])
def test_block_weights_rebuild_the_block(make: str) -> None:
    backbone = small_backbone(make)
    tower = backbone.image
    weights = backbone.block_weights("image", 1)
    assert weights is not None
    width = tower.width(1)
    x = torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0))
    body = tower.pieces([], TapConfig())[2].body
    with torch.no_grad():
        torch.testing.assert_close(_block(x, weights), body(x), rtol=1e-4, atol=1e-4)


def _block(x: torch.Tensor, w: dict) -> torch.Tensor:
    """A pre-norm transformer block from its weights by role."""
    width, heads = x.shape[-1], w["heads"]
    normed = functional.layer_norm(x, (width,), w["ln1_weight"], w["ln1_bias"])
    joint = functional.linear(normed, w["qkv_weight"], w["qkv_bias"])
    query, key, value = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joint.chunk(3, -1)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value)
    x = x + functional.linear(mixed.transpose(1, 2).flatten(2), w["out_weight"], w["out_bias"])
    normed = functional.layer_norm(x, (width,), w["ln2_weight"], w["ln2_bias"])
    inner = functional.linear(normed, w["fc1_weight"], w["fc1_bias"])
    quick = w["activation"] == "quick_gelu"
    inner = inner * torch.sigmoid(1.702 * inner) if quick else functional.gelu(inner)
    return x + functional.linear(inner, w["fc2_weight"], w["fc2_bias"])


def test_convolutions_have_no_block_weights() -> None:
    assert small_backbone("efficientnet").block_weights("image", 0) is None
