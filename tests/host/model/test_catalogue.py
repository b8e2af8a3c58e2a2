"""`edgeladder models`: what works and what is refused, from open_clip's registry alone."""

from __future__ import annotations

import json
import socket

import pytest

from edgeladder.cli.app import main
from edgeladder.host.model.catalogue import models
from edgeladder.host.model.licences import UNKNOWN, licence


def test_every_model_with_weights_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, sized and licensed; whoever is refused has a reason and an alternative."""
    monkeypatch.setattr(socket, "create_connection", None)
    found = {item.name: item for item in models()}
    base = found["ViT-B-16"]
    assert base.works and base.pretrained == "openai" and base.licence == "MIT"
    assert base.image_millions and 80 < base.image_millions < 90 and base.pixels == 224
    assert found["nano"].works and found["ViT-B-16-SigLIP"].licence == "Apache-2.0"
    refused = {name for name, item in found.items() if not item.works}
    assert {"nllb-clip-base", "nllb-clip-large-siglip"} <= refused
    for name in ("RN50", "RN50x64", "coca_ViT-L-14", "roberta-ViT-B-32"):
        assert found[name].works and found[name].bytes, name
    for name in refused:
        assert found[name].reason and found[str(found[name].instead)].works, name
    sized = [item for item in found.values() if item.works and item.bytes]
    assert len(sized) > 0.8 * len(found) - len(refused)


def test_the_command_searches_and_says_why(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "nllb-clip-base"]) == 0
    text = capfd.readouterr().out
    assert "refused:" in text and "RoBERTa" in text and "xlm-roberta-base-ViT-B-32" in text
    assert main(["models", "siglip2", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)["models"]
    assert told and all("SigLIP2" in item["name"] for item in told)


@pytest.mark.parametrize(
    ("tag", "repository", "name"),
    [
        ("openai", "timm/vit_base_patch16_clip_224.openai/", "MIT"),
        ("metaclip_400m", "timm/x/", "CC-BY-NC-4.0"),
        ("meta", "facebook/PE-Core-B16-224/", "Apache-2.0"),
        ("something", "", UNKNOWN),
    ],
)
def test_licences(tag: str, repository: str, name: str) -> None:
    assert licence(tag, repository) == name
