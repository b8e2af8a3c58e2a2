"""Small open_clip models of every supported make, random weights."""

from __future__ import annotations

import tempfile
from typing import Any

import pytest
import torch

from edgeladder.host.model.backbone import Backbone, wrap

WORDS = 300  # ids 298 and 299 start and end a text, as in OpenAI's vocabulary
CONTEXT = 12

# ViT-B/16 and B/32 by open_clip's own classes at their texts' real length, inside CLIP and, as
# later models are, inside CustomTextCLIP
_NATIVE = {"vit-b-16": 16, "vit-b-32": 32, "vit-b-16-custom-text": 16}
MAKES = (
    *("openai", *_NATIVE, "coca", "roberta", "resnet"),
    *("siglip", "eva", "efficientnet", "convnext", "fastvit"),
)
_TIMM = {
    "siglip": ("vit_tiny_patch16_224", {"timm_pool": "map", "timm_proj": "none"}),
    "eva": ("eva02_tiny_patch14_224", {"timm_proj": "linear"}),
    "efficientnet": ("tf_efficientnet_lite0", {"timm_proj": "linear"}),
    "convnext": ("convnext_atto", {"timm_proj": "mlp"}),
    "fastvit": ("fastvit_t8", {"timm_proj": "linear"}),
}


def small_backbone(make: str) -> Backbone:
    """A backbone of one of `MAKES`, its weights random and never zero."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
    from open_clip.transform import PreprocessCfg

    torch.manual_seed(0)
    text: dict[str, Any] = {
        "context_length": CONTEXT,
        "vocab_size": WORDS,
        "width": 32,
        "heads": 2,
        "layers": 3,
    }
    network: Any
    if make == "openai":
        vision = CLIPVisionCfg(layers=3, width=48, head_width=16, patch_size=8, image_size=32)
        network = CLIP(24, vision, CLIPTextCfg(**text), quick_gelu=True)
    elif make == "resnet":
        vision = CLIPVisionCfg(layers=(1, 2, 9, 1), width=8, head_width=16, image_size=64)
        network = CLIP(24, vision, CLIPTextCfg(**text), quick_gelu=True)
    elif make == "coca":
        network = _coca(text)
    elif make == "roberta":
        pytest.importorskip("transformers")
        vision = CLIPVisionCfg(layers=2, width=48, head_width=16, patch_size=8, image_size=32)
        with tempfile.TemporaryDirectory() as folder:
            write_roberta(folder)
            encoder = CLIPTextCfg(hf_model_name=folder, hf_model_pretrained=False)
            network = CustomTextCLIP(24, vision, encoder)
    elif make in _NATIVE:
        vision = CLIPVisionCfg(
            layers=3, width=64, head_width=16, patch_size=_NATIVE[make], image_size=64
        )
        text |= {"context_length": 77, "width": 64}
        make_clip = CustomTextCLIP if make.endswith("custom-text") else CLIP
        network = make_clip(48, vision, CLIPTextCfg(**text))
    else:
        name, options = _TIMM[make]
        width = 192 if make == "siglip" else 24  # without a projection the trunk's width
        vision = CLIPVisionCfg(timm_model_name=name, image_size=224, **options)
        if make == "siglip":
            text |= {
                "no_causal_mask": True,
                "pool_type": "last",
                "proj_bias": True,
                "act_kwargs": {"approximate": "tanh"},
            }
        network = CustomTextCLIP(
            width, vision, CLIPTextCfg(**text), init_logit_bias=-10.0 if make == "siglip" else None
        )
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim < 2:  # norms and biases start at ones and zeros, which hide mistakes
                weight.add_(torch.randn_like(weight) * 0.1)
        for name, value in network.named_buffers():
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    network.visual.preprocess_cfg = vars(PreprocessCfg())
    network.eval().requires_grad_(False)
    return wrap(
        network, name=make, pretrained="none", origin="random", licence="none", tokenizer=None
    )


def _coca(text: dict[str, Any]) -> Any:
    from open_clip.coca_model import CoCa, MultimodalCfg
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(
        **{"layers": 3, "width": 48, "head_width": 16, "patch_size": 8, "image_size": 32},
        attentional_pool=True,
        attn_pooler_heads=2,
        output_tokens=True,
    )
    decoder = MultimodalCfg(width=24, heads=2, layers=1, context_length=CONTEXT)
    words = CLIPTextCfg(**text, embed_cls=True, output_tokens=True)
    return CoCa(24, decoder, words, vision)


def write_roberta(folder: str, **changed: Any) -> None:
    """The definition of a small RoBERTa, as its repository on the hub holds one."""
    from transformers import RobertaConfig

    RobertaConfig(
        **{
            "vocab_size": WORDS,
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": CONTEXT + 2,
            "type_vocab_size": 1,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
            **changed,
        }
    ).save_pretrained(folder)
