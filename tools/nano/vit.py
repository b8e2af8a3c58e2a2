"""Making nano-vit: nano's text side around a ViT-Ti/16, to measure with; nothing of it ships.

The text transformer and the vectors of ImageNet's class names are those of the shipped weights; the
classifier, how alike its rows are, and the learned projections are the vision transformer's own.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgeladder.host.model import nano_model as nano
from edgeladder.host.model import nano_vit
from tools.nano import words as text_data
from tools.nano.pictures import features
from tools.nano.project import train_projections
from tools.nano.settings import Settings
from tools.nano.teacher import vit_tiny, write_pooled
from tools.nano.train import pooled_text, write_heads

# balance and sharpness were chosen on train pictures of the data sets of docs/nano.md
SETTINGS = Settings()


def start(teacher: Any, settings: Settings) -> tuple[Any, tuple[Tensor, Tensor]]:
    """nano-vit with everything written but the projections, and the classes' vectors.

    Args:
        teacher: timm's vision transformer with its `head` of 1,000 classes.
        settings: the parts' shares and the sharpness.

    Returns:
        The network; two (1000, 128) tables of unit length, of all names and of the first.
    """
    shipped: Any = nano.load().model
    network: Any = nano.build(len(nano.vocabulary()), nano_vit.TRUNK)
    own = {k: v for k, v in teacher.state_dict().items() if not k.startswith("head.")}
    network.visual.trunk.load_state_dict(own)
    network.text.load_state_dict(shipped.text.state_dict())
    with torch.no_grad():
        names = functional.normalize(shipped.visual.head[0].names, dim=-1)
        first = [lemmas[0] for lemmas in text_data.class_lemmas()]
        pooled = pooled_text(network.text, nano.tokenizer(nano.vocabulary()), first)
        head = network.text.text_projection
        vectors = functional.linear(pooled, head.weight, head.bias)
    write_heads(network, teacher.head, names, settings)
    return network, (names, functional.normalize(vectors, dim=-1))


def train(work: Path, weights: Path, settings: Settings) -> nn.Module:
    """The whole recipe; what is done already under `work` is not done again."""
    teacher: Any = vit_tiny(weights)
    network, names = start(teacher, settings)
    own = work / "vit-tiny"
    write = functools.partial(write_pooled, network=teacher, trunk=nano_vit.TRUNK)
    pictures = features(work, own, write)
    train_projections(network, teacher.head, own, settings, names, pictures)
    done: nn.Module = network.eval()
    return done


def write(network: nn.Module, settings: Settings, target: Path) -> None:
    """The weights in float32 as one file: what is measured with is not rounded first."""
    from safetensors.torch import save_file

    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    values = {name: value.contiguous() for name, value in network.state_dict().items()}
    recipe = json.dumps(asdict(settings), sort_keys=True)
    save_file(values, partial, metadata={"settings": recipe})
    partial.rename(target)
    print(f"weights: {target.stat().st_size / 1e6:.2f} MB in {target}")
