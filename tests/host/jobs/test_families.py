"""Families of models beside OpenAI's ViTs, by name: from the export to a deployed file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgeladder.core.bundle import Bundle
from edgeladder.core.request import TrainRequest
from edgeladder.core.yaml_config import load_profile
from edgeladder.host.export import ExportOptions, export
from edgeladder.host.model.backbone import Backbone, load_backbone
from edgeladder.runtime.classifier import Classifier, InferenceSizes
from edgeladder.runtime.deployment import deploy
from edgeladder.runtime.pictures.decode import decode
from edgeladder.runtime.prediction import predict
from edgeladder.runtime.towers.tokens import Tokenizer, class_prompts
from tests.host.model.small_models import write_roberta
from tests.host.model.small_tokenizers import SENTENCES, byte_pairs, pieces
from tests.jobs.here import run
from tests.make_bundle import CLASSES, DEFINITION

CONTEXT = 16
TEXT = DEFINITION["text_cfg"]
VIT = DEFINITION["vision_cfg"]
FAMILIES: dict[str, dict[str, Any]] = {
    "resnet": {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 2, 1], "width": 8},
        "text_cfg": TEXT,
    },
    "coca": {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {
            **(VIT | {"attentional_pool": True}), "attn_pooler_heads": 2, "output_tokens": True
        },
        "text_cfg": {**TEXT, "context_length": 15, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {
            **{"context_length": 15, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
            "attn_pooler_heads": 2,
        },
    },
    "roberta": {"embed_dim": 32, "vision_cfg": VIT, "text_cfg": {"context_length": CONTEXT}},
    "siglip": {
        "embed_dim": 192,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {
            "image_size": 224, "timm_model_name": "vit_tiny_patch16_224",
            "timm_model_pretrained": False, "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": {
            **(TEXT | {"context_length": CONTEXT, "width": 192}),
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
        },
    },
}  # fmt: skip


def named(family: str, folder: Path) -> str:
    """A small model of a family under a name of open_clip's."""
    import open_clip

    definition = json.loads(json.dumps(FAMILIES[family]))
    if family in ("roberta", "siglip"):
        pytest.importorskip("transformers")
        words = definition["text_cfg"]
        words["hf_tokenizer_name"] = str(folder)
        if family == "roberta":
            size = byte_pairs(folder)
            write_roberta(str(folder), vocab_size=size, max_position_embeddings=CONTEXT + 2)
            words |= {"hf_model_name": str(folder), "hf_pooler_type": "mean_pooler"}
        else:
            pytest.importorskip("sentencepiece")
            words["vocab_size"] = max(300, pieces(folder))  # the gate draws ids of CLIP's
    place = folder / f"edgeladder-{family}.json"
    place.write_text(json.dumps(definition))
    open_clip.add_model_config(place)
    return place.stem


@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_export_to_a_deployed_file(
    family: str, picture_folder: Path, tmp_path: Path
) -> None:
    name = named(family, tmp_path)
    backbone = load_backbone(name, "none")
    folder = export(
        *(name, "none", load_profile("tiny"), ExportOptions(CLASSES)), out=tmp_path / "bundle"
    ).folder
    bundle = Bundle.open(folder)
    assert bundle.manifest.model.embedding_dim == FAMILIES[family]["embed_dim"]
    same_tokens(backbone, bundle)
    request = TrainRequest(
        bundle=str(folder),
        data=str(picture_folder),
        cache=str(tmp_path / "cache"),
        run=str(tmp_path / "run"),
        budget_bytes=8_000_000_000,
        engine="stock",
        overrides=["train.steps=6", "train.learning_rate=0.003"],
    )
    found = run(request)
    assert found["new"] == 24 and found["text_new"] == 3 and np.isfinite(found["loss"])
    wanted = zero_shot(backbone, bundle, picture_folder)
    for sizes in (InferenceSizes(), InferenceSizes(whole=False, batch=1, group=5)):
        with Classifier.open(tmp_path / "run", sizes=sizes) as classifier:
            squares = [
                classifier.square(path.read_bytes()) for path in sorted_pictures(picture_folder)
            ]
            parts = classifier.judge_squares(squares)
        seen = np.concatenate([zero for _, zero in parts])
        np.testing.assert_allclose(seen, wanted, rtol=1e-4, atol=2e-3)
    answers = predict(tmp_path / "run", [picture_folder]).predictions
    assert len(answers) == 24 and not any(item.error for item in answers)
    assert deploy(tmp_path / "run", tmp_path / "model.onnx").difference < 1e-3


def same_tokens(backbone: Backbone, bundle: Bundle) -> None:
    """Also of texts that training never saw, cut ones among them."""
    texts = [*SENTENCES, "x " * 40, " ", "日本語 мяч", *class_prompts(["long_sleeve"])[0]]
    theirs = backbone.tokenizer(texts).numpy()
    np.testing.assert_array_equal(Tokenizer.from_bundle(bundle).encode(texts), theirs)


def sorted_pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.png"))[::6]


def zero_shot(backbone: Backbone, bundle: Bundle, folder: Path) -> np.ndarray:
    """Class logits by open_clip alone: its own towers and tokenizer, prompts averaged."""
    network: Any = backbone.model
    with torch.no_grad():
        texts = []
        for prompts in class_prompts(CLASSES):
            each = torch.nn.functional.normalize(
                network.encode_text(backbone.tokenizer(prompts)), dim=-1
            )
            texts.append(torch.nn.functional.normalize(each.mean(0), dim=-1))
        pixels = np.stack(
            [decode(path.read_bytes(), backbone.preprocess) for path in sorted_pictures(folder)]
        )
        images = torch.nn.functional.normalize(
            network.encode_image(torch.from_numpy(pixels)), dim=-1
        )
        logits = backbone.logit_scale * images @ torch.stack(texts).T + backbone.logit_bias
    found: np.ndarray = logits.numpy()
    return found
