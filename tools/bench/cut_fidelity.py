#!/usr/bin/env python
"""How much of a block a narrower rung reproduces: channels against directions, on real tokens.

    tools/bench/cut_fidelity.py --model nano-vit --pretrained nano-vit.safetensors \
        --pictures pictures.zip --width 96 --heads 4 --out cut-fidelity.csv

Each tapped block's own input, of at most 32 pictures, goes through the block and, in what the rung
keeps, through the rung. Compared is what either adds: the correlation about their means, and the
ratio of their lengths. Directions of pictures are those of 32 others. `full` is a rung of the
block's width in directions: the block, but for SiLU.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeladder.core.config import LadderConfig, TapConfig  # noqa: E402
from edgeladder.core.records import from_json  # noqa: E402
from edgeladder.host.model.backbone import Backbone, load_backbone, resolve_taps  # noqa: E402
from edgeladder.host.model.cut import Block, cut, kept_channels  # noqa: E402
from edgeladder.host.model.directions import basis, cut_directions, gram  # noqa: E402
from edgeladder.host.model.probe import noise, residual_tokens, run  # noqa: E402
from edgeladder.host.model.prompts import build_prompts  # noqa: E402
from edgeladder.host.model.rung import Rung  # noqa: E402
from edgeladder.runtime.pictures.dataset import open_data, split  # noqa: E402
from edgeladder.runtime.pictures.decode import decode_square, normalize  # noqa: E402

Cut = tuple[Tensor, Callable[[Rung, Block], None]]  # what is kept (W, w), and what fills a rung


def cuts(
    backbone: Backbone, blocks: dict[int, Block], pixels: Tensor, width: int
) -> dict[str, Cut]:
    """Every way to keep `width` of the residual stream's coordinates."""
    given = list(blocks.values())
    full = len(given[0]["ln1_weight"])
    kept = kept_channels(given, width)
    found: dict[str, Cut] = {
        "channels": (torch.eye(full)[:, kept], lambda rung, block: cut(rung, block, kept))
    }
    grey = noise(backbone.image, torch.Generator().manual_seed(0))
    for name, batch, size in (
        ("directions of noise", grey, width),
        ("directions of pictures", pixels, width),
        ("full", grey, full),
    ):
        values = run(backbone.image, batch)
        moments = gram([residual_tokens(values, block) for block in blocks], given)
        into, share = basis(moments, size)
        found[name] = into, _filler(into, share)
    return found


def _filler(into: Tensor, share: float) -> Callable[[Rung, Block], None]:
    return lambda rung, block: cut_directions(rung, block, into, share)


def fidelity(rung: Rung, into: Tensor, before: Tensor, after: Tensor) -> tuple[float, float]:
    """Correlation and ratio of lengths of what rung and block add to tokens (N, T, W)."""
    prompts = build_prompts(rung_config(rung.width, rung.heads, 4.0), 1).prepare([], 1).of(0)
    start = before @ into
    count, tokens, width = start.shape
    rows = start.transpose(0, 1).reshape(-1, width)
    moved = rung(None, rows, [tokens], [count], prompts).reshape(tokens, count, width)
    mine, theirs = moved.transpose(0, 1) - start, (after - before) @ into
    ratio = float(mine.norm() / theirs.norm())
    mine, theirs = mine - mine.mean((0, 1)), theirs - theirs.mean((0, 1))
    return float((mine * theirs).sum() / (mine.norm() * theirs.norm())), ratio


def rung_config(width: int, heads: int, hidden: float) -> LadderConfig:
    """A ladder without prompts."""
    values = {"width": width, "heads": heads, "hidden": hidden, "prompts": {"kind": "none"}}
    return from_json(LadderConfig, values)


def pictures(backbone: Backbone, data: Path) -> Tensor:
    """At most 64 training pictures, classes in turn, normalised."""
    dataset = open_data(data)
    chosen = split(dataset, max(1, 64 // len(dataset.classes)), 0)[0][:64]
    squares = np.stack([decode_square(p.read(), backbone.preprocess) for p in chosen])
    return torch.from_numpy(normalize(squares, backbone.preprocess))


def main() -> None:
    """Compare, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="nano-vit")
    parser.add_argument("--pretrained")
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--hidden", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=Path("cut-fidelity.csv"))
    arguments = parser.parse_args()
    backbone = load_backbone(arguments.model, arguments.pretrained)
    found = [
        (tap.block, backbone.block_weights("image", tap.block))
        for tap in resolve_taps(backbone, "image", TapConfig())
    ]
    blocks = {index: block for index, block in found if block is not None}
    pixels = pictures(backbone, arguments.pictures)
    rows = []
    with torch.no_grad():
        values = run(backbone.image, pixels[1::2])
        for name, (into, fill) in cuts(backbone, blocks, pixels[::2], arguments.width).items():
            for index, block in blocks.items():
                width = into.shape[1]
                heads = block["heads"] if name == "full" else arguments.heads
                rung = Rung(rung_config(width, heads, arguments.hidden), fused=False)
                fill(rung, block)
                before, after = values[f"hidden_{index}"], values[f"hidden_{index + 1}"]
                measured = [round(v, 4) for v in fidelity(rung, into, before, after)]
                rows.append([name, index, width, heads, *measured])
                print(*rows[-1], sep="\t", flush=True)
    with open(arguments.out, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["kept", "block", "width", "heads", "correlation", "ratio"])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
