"""nano-vit: nano around a vision transformer, to measure what needs real blocks. It is not shipped.

The text side is nano's, weights and all; the image tower is timm's `vit_tiny_patch16_224` with its
1,000-class head, whose blocks can be tapped, cut and prompted. `tools/nano/build --tower vit-tiny`
makes the weights from a file of the user's own, `docs/nano.md` says how.
"""

from __future__ import annotations

from pathlib import Path

from edgeladder.core.errors import ConfigError
from edgeladder.host.model import nano_model as nano
from edgeladder.host.model.backbone import Backbone

NAME = "nano-vit"
# augreg's weights read pixels in -1 to 1
TRUNK = nano.ImageTrunk("vit_tiny_patch16_224", mean=0.5, deviation=0.5)
_ORIGIN = "tools/nano of this repository, around ViT-Ti/16 weights of the user's own"
_LICENCE = "that of the ViT-Ti/16 weights given, which nobody has checked: for measuring only"


def load(pretrained: str | None = None) -> Backbone:
    """The model with its weights.

    Args:
        pretrained: `none` for random weights, or a file that `tools/nano/build` wrote.

    Raises:
        ConfigError: no weights named, or no such file; none are shipped.
        DataError: a file that does not hold this model's weights.
    """
    if nano.is_random(pretrained):
        return nano.backbone(NAME, TRUNK, None, _ORIGIN, _LICENCE)
    build = "tools/nano/build --tower vit-tiny --weights VIT.npz --out FILE.safetensors"
    if pretrained is None or not Path(pretrained).is_file():
        raise ConfigError(
            f"{NAME} ships without weights"
            if pretrained is None
            else f"no weights file {pretrained!r}",
            where="--pretrained",
            remedy=f"make them with {build} and give --pretrained FILE.safetensors, or take "
            "--pretrained none for random weights",
        )
    remedy = f"give the file that {build} writes"
    return nano.backbone(NAME, TRUNK, Path(pretrained), _ORIGIN, _LICENCE, remedy=remedy)
