"""Names of models in every spelling; what is refused by name; what is not at hand and out of reach.

Nothing here asks the network: whether something answers is told by the tests.
"""

from __future__ import annotations

import json
import logging
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeladder.core.errors import ConfigError, DataError
from edgeladder.host.model import backbone, download, find_tokenizer
from edgeladder.host.model.backbone import load_backbone
from edgeladder.host.model.names import named
from tests.host.model.small_models import write_roberta
from tests.make_bundle import DEFINITION, register_model

AWAY = "huggingface.co is out of reach (no such host)"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cached, nothing answers, and whoever works all the same fails the test."""
    import open_clip

    def work(*_: object, **__: object) -> None:
        raise AssertionError("worked before it looked")

    monkeypatch.setattr(download, "unreachable", lambda address: AWAY)
    monkeypatch.setattr(download.Remote, "at_hand", False)
    monkeypatch.setattr(open_clip, "create_model", work)


@pytest.mark.parametrize(
    ("spelling", "name", "tag"),
    [
        ("openai/clip-vit-base-patch16", "ViT-B-16", "openai"),
        ("openai/clip-vit-large-patch14-336", "ViT-L-14-336", "openai"),
        ("hf-hub:timm/ViT-B-16-SigLIP", "ViT-B-16-SigLIP", "webli"),
        ("hf-hub:timm/vit_base_patch16_clip_224.openai", "ViT-B-16", "openai"),
        (
            "https://huggingface.co/laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K",
            *("ViT-B-16", "datacomp_xl_s13b_b90k"),
        ),
        ("google/siglip-base-patch16-224", "ViT-B-16-SigLIP", "webli"),
        ("hf-hub:someone/their-clip", "hf-hub:someone/their-clip", None),
        ("ViT-B/16", "ViT-B-16", None),
        ("nano", "nano", None),
    ],
)
def test_spellings_of_hubs(spelling: str, name: str, tag: str | None) -> None:
    found = named(spelling)
    assert (found.name, found.tag) == (name, tag)


def test_every_name_of_the_table_is_one_of_open_clips() -> None:
    import open_clip

    from edgeladder.host.model.names import _SAME_WEIGHTS

    for name, tag in _SAME_WEIGHTS.values():
        assert tag in open_clip.list_pretrained_tags_by_model(name)


@pytest.mark.parametrize(
    ("model", "address"),
    [
        ("ViT-B/32", "timm/vit_base_patch32_clip_224.openai/resolve/main/open_clip_model.safe"),
        ("openai/clip-vit-base-patch16", "timm/vit_base_patch16_clip_224.openai/resolve/main/"),
        ("hf-hub:someone/their-clip", "someone/their-clip/resolve/main/open_clip_model.safe"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_without_a_network_the_address_is_told_at_once(model: str, address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_backbone(model)
    assert address in (caught.value.where or "") and AWAY in caught.value.message
    assert "--pretrained FILE" in (caught.value.remedy or "")


@pytest.mark.usefixtures("offline")
def test_a_missing_tokenizer_is_found_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_tokenizer.util.find_spec
    here = lambda name: name if name == "transformers" else found(name)  # noqa: E731
    monkeypatch.setattr(find_tokenizer.util, "find_spec", here)
    with pytest.raises(ConfigError) as caught:
        load_backbone("ViT-B-16-SigLIP", "none")
    assert caught.value.where == (
        "https://huggingface.co/timm/ViT-B-16-SigLIP/resolve/main/tokenizer.json"
    )
    assert "--tokenizer FOLDER" in (caught.value.remedy or "")


@pytest.mark.usefixtures("offline")
def test_a_tokenizer_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(find_tokenizer.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs transformers") as caught:
        load_backbone("ViT-B-16-SigLIP", "none")
    assert "edgeladder[host,hf]" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("model", "instead"),
    [
        ("nllb-clip-base", "xlm-roberta-base-ViT-B-32"),
        ("nllb-clip-large", "xlm-roberta-large-ViT-H-14"),
        ("nllb-clip-base-siglip", "ViT-B-16-SigLIP2"),
        ("mt5-base-ViT-B-32", "xlm-roberta-base-ViT-B-32"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_towers_that_do_not_fit_are_refused_by_name(model: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=f"{model} is not supported") as caught:
        load_backbone(model, "none")
    assert f"take {instead};" in (caught.value.remedy or "")


@pytest.mark.usefixtures("offline")
def test_a_text_towers_definition_is_found_before_any_work(tmp_path: Path) -> None:
    """Its weights are the whole model's; where its definition is missing, the address is told."""
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="definition of roberta-ViT-B-32's text tower") as caught:
        find_tokenizer.find_encoder("roberta-ViT-B-32")
    assert caught.value.where == "https://huggingface.co/roberta-base/resolve/main/config.json"
    assert "--tokenizer FOLDER" in (caught.value.remedy or "")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        find_tokenizer.find_encoder("roberta-ViT-B-32", tmp_path)
    write_roberta(str(tmp_path))
    found = find_tokenizer.find_encoder("roberta-ViT-B-32", tmp_path)
    assert found and found["hf_model_name"] == str(tmp_path) and not found["hf_model_pretrained"]
    assert find_tokenizer.find_encoder("ViT-B-32") is None


def test_a_folder_in_open_clips_format(tmp_path: Path) -> None:
    """`local-dir:` holds definition and weights, as a repository of the hub does."""
    want = load_backbone(register_model(), "none").model.state_dict()
    torch.save(want, tmp_path / "open_clip_pytorch_model.bin")
    values: dict[str, Any] = {"model_cfg": DEFINITION, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(values))
    name = f"local-dir:{tmp_path}"
    loaded = load_backbone(name)
    assert loaded.origin == name
    assert all(torch.equal(value, want[key]) for key, value in loaded.model.state_dict().items())
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="model_cfg"):
        load_backbone(name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"error: no such file", "it is text: 'error: no such file'"),
        (b"<!doctype html><html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "pointer of Git LFS"),
        (b"", "it is empty"),
        (b"PK\x03\x04abc", "a zip archive that is cut short"),
        (bytes(range(200)), "it is no file of tensors"),
    ],
)
def test_a_broken_weights_file_is_described(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot load weights") as caught:
        load_backbone(register_model(), str(path))
    assert words in caught.value.message


def test_a_library_that_says_101_is_not_quoted_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02")
    cause = backbone._cause(KeyError(101), path)
    assert cause == "it is no file of tensors (KeyError: 101)"


def test_what_answers_counts_as_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def answer(error: Exception | None) -> str | None:
        def ask(*_: object, **__: object) -> Any:
            if error is not None:
                raise error
            return open("/dev/null")  # noqa: SIM115 - closed by who asked

        monkeypatch.setattr(urllib.request, "urlopen", ask)
        return download.unreachable("https://hub.example/file")

    refused = urllib.error.HTTPError("https://hub.example/file", 401, "no", None, None)
    assert answer(None) is None and answer(refused) is None
    assert answer(urllib.error.URLError(OSError(2, "No such host"))) == (
        "hub.example is out of reach (no such host)"
    )
    assert answer(TimeoutError("timed out")) == "hub.example is out of reach (timed out)"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download.unreachable("https://hub.example/file") == "HF_HUB_OFFLINE is set"


def test_a_warning_of_the_hub_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    hub, seen = logging.getLogger("huggingface_hub"), []
    handler = logging.Handler()
    handler.emit = seen.append
    hub.addHandler(handler)
    try:
        with download.one_voice():
            logging.getLogger("huggingface_hub.utils").warning("retrying")
    finally:
        hub.removeHandler(handler)
    assert len(seen) == 1 and not caplog.records


def test_only_torchs_word_on_a_missing_gpu_is_dropped() -> None:
    logger = logging.getLogger("torch.utils.cpp_extension")
    said = [
        logger.makeRecord(logger.name, logging.WARNING, "f", 1, text, ("/usr/local",), None)
        for text in ("No CUDA runtime is found, using CUDA_HOME='%s'", "ninja was not found in %s")
    ]
    assert [bool(logger.filter(record)) for record in said] == [False, True]
