"""Making nano-vit: nano's text side around a ViT-Ti/16, to measure with; nothing of it ships.

The text transformer and the vectors of ImageNet's class names are those of the shipped weights;
the classifier and how alike its rows are come from the vision transformer. The projections are what
nano's start from: the rows' leading directions, and the ridge regression of the names' vectors to
the rows. Learning from pictures gained nothing after that (docs/notes/nano.md), so nothing is
trained, and it takes seconds.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from edgeladder.host.model import nano_model as nano
from edgeladder.host.model import nano_vit
from tools.nano.project import write_start
from tools.nano.settings import Settings
from tools.nano.teacher import vit_tiny
from tools.nano.train import write_heads

# chosen on train pictures of the data sets of docs/nano.md: the best worst margin over the aims
SETTINGS = Settings(sharpness=14.0, name_share=0.2, kind_share=0.4, project_steps=0)


def make(weights: Path, settings: Settings) -> nn.Module:
    """nano-vit around the vision transformer of an .npz file."""
    return around(vit_tiny(weights), settings)


def around(teacher: Any, settings: Settings) -> nn.Module:
    """nano-vit, all of it.

    Args:
        teacher: timm's vision transformer with its `head` of 1,000 classes.
        settings: the parts' shares, the sharpness and the scale.
    """
    shipped: Any = nano.load().model
    network: Any = nano.build(len(nano.vocabulary()), nano_vit.TRUNK)
    own = {k: v for k, v in teacher.state_dict().items() if not k.startswith("head.")}
    network.visual.trunk.load_state_dict(own)
    network.text.load_state_dict(shipped.text.state_dict())
    names = functional.normalize(shipped.visual.head[0].names, dim=-1)
    write_heads(network, teacher.head, names, settings)
    image, text = network.visual.head[0], network.text.text_projection
    rows = teacher.head.weight - teacher.head.weight.mean(0)
    with torch.no_grad():  # what a class's row says is its own, whatever the mean picture
        write_start(image.project, text.project, rows, torch.zeros(rows.shape[1]), names)
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
