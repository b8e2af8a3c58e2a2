#!/usr/bin/env python
"""An open_clip image tower as one ONNX file, for `onnx_probe.py`. Host only.

python -m tools.bench.peers.onnx_image --model ViT-B/16 --pretrained none --out clip.onnx
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from tools.bench.peers.run import open_model
from tools.bench.peers.towers import image_features


class _Image(nn.Module):
    """Pixels (B, 3, S, S) -> unit embeddings (B, D)."""

    def __init__(self, clip: nn.Module):
        super().__init__()
        self.clip = clip

    def forward(self, pixels: Tensor) -> Tensor:
        """Unit embeddings."""
        return image_features(self.clip, pixels)


def _colours(visual: nn.Module) -> dict[str, list[float]]:
    """Mean and standard deviation of the view: newer open_clip towers keep them in a record."""
    kept = getattr(visual, "preprocess_cfg", {})
    return {
        name: [float(part) for part in kept.get(name) or getattr(visual, f"image_{name}")]
        for name in ("mean", "std")
    }


def main() -> None:
    """Export; beside it a .json of the view: size, mean and standard deviation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="ViT-B/16")
    parser.add_argument("--pretrained", default="none")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    clip, _, _ = open_model(given.model, None if given.model == "nano" else given.pretrained)
    size = clip.visual.image_size
    size = int(size[0] if isinstance(size, (tuple, list)) else size)
    pixels = torch.zeros(2, 3, size, size)
    torch.onnx.export(
        _Image(clip).eval(),
        (pixels,),
        str(given.out),
        input_names=["pixels"],
        output_names=["embedding"],
        dynamic_shapes={"pixels": {0: torch.export.Dim("B", min=1, max=256)}},
        dynamo=True,
        external_data=True,
    )
    view = {"size": size, **_colours(clip.visual)}
    given.out.with_suffix(".json").write_text(json.dumps(view), encoding="utf-8")


if __name__ == "__main__":
    main()
