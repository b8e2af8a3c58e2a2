"""The embedded model: EfficientNet-Lite0 and a small text transformer, over ImageNet's classes.

`nano_vit.py` is the same model around another image tower, for measuring.

The embedding has three parts. In the first two, a picture is a mixture of ImageNet's 1,000 classes:
by their name vectors, against the text's own vector (ConSE, arXiv:1312.5650), and by how alike
their rows in EfficientNet's classifier are, against the mixture that the text is. The third is a
learned projection on each side. Each part has a fixed length, so one dot product is the weighted
sum of the three scores. `tools/nano/` makes the weights, `docs/nano.md` says from what.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.core.errors import DataError
from edgeladder.core.files import sha256_file
from edgeladder.core.manifest import TokenizerRecord
from edgeladder.core.tensors import TensorFile
from edgeladder.host.model.backbone import Backbone, wrap

WIDTH = 160
LAYERS = 3
HEADS = 5
CONTEXT = 24
SIZE = 224  # of a picture, in pixels
PARTS, PART = 3, 128  # of the embedding
CLASSES = 1000
_EPSILON = 1e-6


@dataclass(frozen=True)
class ImageTrunk:
    """The locked image tower: a network of timm's with ImageNet's 1,000-class head."""

    name: str  # timm's
    mean: float  # of pixels in 0 to 1, alike for the three colours, as the weights want it
    deviation: float
    pool: str = ""  # open_clip's `timm_pool`; empty: the network's own


# (x - 127) / 128 on bytes, as the published weights want it
EFFICIENTNET = ImageTrunk("tf_efficientnet_lite0", 127 / 255, 128 / 255, pool="avg")
_ORIGIN = "tools/nano of this repository: EfficientNet-Lite0 (Google), all-MiniLM-L6-v2 as teacher"
_LICENCE = "Apache-2.0"
_SCALE = ".scale"


def joined(parts: list[Tensor], balance: Tensor) -> Tensor:
    """(N, 128) thrice -> (N, 384) of length 1, the parts' squared lengths being `balance`."""
    return torch.cat(
        [
            functional.normalize(part, dim=-1, eps=_EPSILON) * balance[index].sqrt()
            for index, part in enumerate(parts)
        ],
        dim=-1,
    )


class ImageHead(nn.Module):
    """Pooled features (N, F) -> embedding (N, 384); F is the image tower's width, 1280 for nano."""

    def __init__(self, features: int):
        super().__init__()
        self.classify = nn.Linear(features, CLASSES)  # ImageNet's head
        self.names = nn.Parameter(torch.randn(CLASSES, PART))  # vectors of the classes' names
        self.kinds = nn.Parameter(torch.randn(CLASSES, PART))  # products: how alike classes look
        self.project = nn.Linear(features, PART)  # learned
        self.balance = nn.Parameter(torch.full((PARTS,), 1 / PARTS))

    def forward(self, pooled: Tensor) -> Tensor:
        """All parts."""
        likely = torch.softmax(self.classify(pooled), dim=-1)  # (N, 1000)
        parts = [likely @ self.names, likely @ self.kinds, self.project(pooled)]
        return joined(parts, self.balance)


class TextHead(nn.Linear):
    """Pooled text (N, W) -> embedding (N, 384); a Linear so that open_clip calls it as one."""

    def __init__(self, width: int):
        super().__init__(width, PART)
        self.compare = nn.Linear(PART, CLASSES, bias=False)  # name vectors, over a temperature
        self.kinds = nn.Parameter(torch.randn(CLASSES, PART))
        self.project = nn.Linear(PART, PART)  # learned
        self.balance = nn.Parameter(torch.full((PARTS,), 1 / PARTS))

    def forward(self, pooled: Tensor) -> Tensor:
        """All parts."""
        vector = functional.normalize(super().forward(pooled), dim=-1, eps=_EPSILON)
        likely = torch.softmax(self.compare(vector), dim=-1)  # (N, 1000)
        return joined([vector, likely @ self.kinds, self.project(vector)], self.balance)


def build(vocabulary: int, trunk: ImageTrunk = EFFICIENTNET) -> nn.Module:
    """The model with random weights of seed 0, as open_clip's CustomTextCLIP."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    torch.manual_seed(0)
    network: nn.Module = CustomTextCLIP(
        embed_dim=PARTS * PART,
        vision_cfg=CLIPVisionCfg(timm_model_name=trunk.name, timm_pool=trunk.pool, image_size=SIZE),
        text_cfg=CLIPTextCfg(
            context_length=CONTEXT,
            vocab_size=vocabulary,
            width=WIDTH,
            heads=HEADS,
            layers=LAYERS,
            proj_bias=True,
        ),
        init_logit_scale=float(np.log(50.0)),
    )
    visual: Any = network.visual
    text: Any = network.text
    visual.head = nn.Sequential(ImageHead(visual.trunk.num_features))
    text.text_projection = TextHead(WIDTH)
    visual.preprocess_cfg = {
        "size": SIZE,
        "mode": "RGB",
        "mean": (trunk.mean,) * 3,
        "std": (trunk.deviation,) * 3,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    return network.eval().requires_grad_(False)


def folder() -> Path:
    """Where the shipped weights and bundle lie."""
    return Path(str(resources.files("edgeladder"))) / "_nano"


def load(pretrained: str | None = None) -> Backbone:
    """The model with its weights.

    Args:
        pretrained: None for the shipped weights, `none` for random ones, or a weights file.

    Raises:
        DataError: a file that does not hold this model's weights.
    """
    if is_random(pretrained):
        return backbone("nano", EFFICIENTNET, None, _ORIGIN, _LICENCE)
    path = Path(pretrained) if pretrained else folder() / "weights.safetensors"
    remedy = "leave --pretrained away for the shipped weights"
    return backbone("nano", EFFICIENTNET, path, _ORIGIN, _LICENCE, remedy=remedy)


def is_random(pretrained: str | None) -> bool:
    """Whether `--pretrained` asks for random weights."""
    return pretrained is not None and pretrained.lower() == "none"


def backbone(
    name: str,
    trunk: ImageTrunk,
    weights: Path | None,
    origin: str,
    licence: str,
    *,
    remedy: str = "",
) -> Backbone:
    """A model of this make around an image tower, with what its use needs.

    Args:
        name: as `--model` has it.
        trunk: the image tower.
        weights: a file as `tools/nano/build` writes it, or None for random weights.
        origin, licence: of the weights in such a file.
        remedy: what to do about a file that does not fit.

    Raises:
        DataError: a file that does not hold this model's weights.
    """
    network = build(len(vocabulary()), trunk)
    if weights is not None:
        try:
            network.load_state_dict(read_weights(weights))
        except Exception as error:  # safetensors and torch raise many kinds
            raise DataError(
                f"not the weights of {name}: {str(error).splitlines()[0][:200]}",
                where=str(weights),
                remedy=remedy,
            ) from error
    found = wrap(
        network,
        name=name,
        pretrained="none" if weights is None else sha256_file(weights)[:12],
        origin="random weights, seed 0" if weights is None else origin,
        licence="none (random weights)" if weights is None else licence,
        tokenizer=None,
    )
    found.write_tokenizer = write_tokenizer
    return found


def vocabulary() -> list[str]:
    """Word pieces in the order of their ids."""
    return (folder() / "words.txt").read_text(encoding="utf-8").split("\n")


def tokenizer(words: list[str]) -> Any:
    """Word pieces of lower-case text; what no piece covers becomes `[UNK]`."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    library = Tokenizer(
        models.WordPiece(
            {word: index for index, word in enumerate(words)},
            unk_token="[UNK]",
            max_input_chars_per_word=40,
        )
    )
    library.normalizer = normalizers.BertNormalizer(lowercase=True)
    library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return library


def write_tokenizer(target: Path) -> TokenizerRecord:
    """Write `target/tokenizer.json`."""
    words = vocabulary()
    tokenizer(words).save(str(target / "tokenizer.json"), pretty=False)
    return TokenizerRecord(
        kind="nano",
        files=["tokenizer/tokenizer.json"],
        context_length=CONTEXT,
        options={
            "clean": "lower",
            "start": words.index("[START]"),
            "end": words.index("[END]"),
            "pad": 0,
        },
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """A weights file as float32: int8 tensors times their `.scale` along the first axis."""
    stored = {name: torch.from_numpy(array) for name, array in TensorFile(path).items()}
    found = {}
    for name, value in stored.items():
        if name.endswith(_SCALE):
            continue
        scale = stored.get(name + _SCALE)
        if scale is not None:
            value = value.float() * scale.reshape(-1, *[1] * (value.ndim - 1))
        found[name] = value.float() if value.is_floating_point() else value
    return found


def narrow_weights(network: nn.Module) -> dict[str, Tensor]:
    """What a weights file holds: matrices int8 with a scale per output, the rest as it is.

    The scales run along the axis that the export's own int8 uses, so that exporting with
    `--dtype int8-weights` loses nothing more.
    """
    stored: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if value.ndim < 2 or value.numel() < 8192:
            stored[name] = value.contiguous()
            continue
        flat = value.flatten(1)
        scale = torch.clamp(flat.abs().amax(1), min=1e-12) / 127
        ratio = value / scale.reshape(-1, *[1] * (value.ndim - 1))
        stored[name] = torch.clamp(torch.round(ratio), -127, 127).to(torch.int8)
        stored[name + _SCALE] = scale
    return stored


def recipe_digest(settings: dict[str, Any]) -> str:
    """A short name of training settings, for checkpoints."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
