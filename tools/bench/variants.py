#!/usr/bin/env python
"""Exports the bundles that the rows of the method and ablation tables train (host).

    tools/bench/variants.py --out rows --only diffusion cross     # all of them without --only
    tools/bench/fewshot.py --bundle edgeladder/_nano/bundle --only-ladders --ladders rows \
        --data pictures.zip --shots 16 --out bench

Each is the profile with the settings below and nothing else changed; what a device may change
(`DEVICE`) needs no bundle of its own: fewshot.py trains it on the bundle that ships.
"""

from __future__ import annotations

import argparse
from pathlib import Path

# name of the row: --set of `edgeladder export`
HOST: dict[str, list[str]] = {
    "LST, no prompts": [
        *("ladder.prompts.kind=none", "ladder.prompts.keep=null", "ladder.share=none"),
    ],
    "no prompts": ["ladder.prompts.kind=none", "ladder.prompts.keep=null"],
    "diffusion prompts": ["ladder.prompts.kind=diffusion", "ladder.prompts.length=16"],
    "cross prompts": ["ladder.prompts.kind=cross", "ladder.prompts.length=8"],
    "cross prompts, frozen copy": [
        *("ladder.prompts.kind=cross", "ladder.prompts.length=8"),
        *("ladder.prompts.cross_weights=frozen", "ladder.prompts.dropout=0.1"),
    ],
    "cross prompts, trained copy": [
        *("ladder.prompts.kind=cross", "ladder.prompts.length=8"),
        "ladder.prompts.cross_weights=copied",
    ],
    "prompt dropout": ["ladder.prompts.dropout=0.1"],
    "cross prompts, random weights": [
        *("ladder.prompts.kind=cross", "ladder.prompts.length=8", "ladder.initialize=random"),
    ],
    "8 prompts": ["ladder.prompts.length=8"],
    "16 prompts": ["ladder.prompts.length=16"],
    "no coupling": ["ladder.prompts.couple=false"],
    "memory prompts": ["ladder.prompts.kind=memory", "ladder.prompts.length=16"],
    "1 bit": ["ladder.prompts.bits=1"],
    "2 bits": ["ladder.prompts.bits=2"],
    "4 bits": ["ladder.prompts.bits=4"],
    "8 bits": ["ladder.prompts.bits=8"],
    "UniPT": ["ladder.aggregate=unipt"],
    "SHERL": ["ladder.aggregate=sherl"],
    "no projection": ["ladder.project=false"],
    "all combined": [
        *("ladder.prompts.kind=cross", "ladder.prompts.length=8", "ladder.prompts.bits=1"),
        *("ladder.prompts.keep=0.3", "ladder.prompts.initialize=prototypes"),
        "ladder.aggregate=unipt",
    ],
    "random weights": ["ladder.initialize=random"],
    "sum for gate": ["ladder.fuse=sum"],
    "no sharing": ["ladder.share=none"],
    "sharing trunk and way out": ["ladder.share=trunk+up"],
    "width 32": ["ladder.width=32"],
    "width 128": ["ladder.width=128"],
    "1 token per tap": ["ladder.taps.grid=0"],
    "10 tokens per tap": ["ladder.taps.grid=3"],
    "2 taps": ["ladder.taps.count=2"],
    "5 taps": ["ladder.taps.count=5"],
}
# what a ladder on transformer blocks begins as; `select` and `tap` where nothing is said
IMPORTANCE: dict[str, list[str]] = {
    "random": ["ladder.initialize=random"],
    "magnitude": ["ladder.initialize=importance"],
    "Fisher": ["ladder.initialize=fisher"],
    "text semi-orthogonal": ["ladder.align=semi_orthogonal"],
    "text matched": ["ladder.align=match"],
    "text procrustes": ["ladder.align=procrustes"],
    "text ridge": ["ladder.align=ridge"],
    "gated": ["ladder.first=gated"],
    "random, gated": ["ladder.initialize=random", "ladder.first=gated"],
    "random, not shared": ["ladder.initialize=random", "ladder.share=none"],
    "magnitude, not shared": ["ladder.share=none"],
    "directions": ["ladder.initialize=directions"],
    "directions of pictures": ["ladder.initialize=directions"],
    "directions, text procrustes": ["ladder.initialize=directions", "ladder.align=procrustes"],
    "directions, text ridge": ["ladder.initialize=directions", "ladder.align=ridge"],
    "directions, gated": ["ladder.initialize=directions", "ladder.first=gated"],
    "directions, not shared": ["ladder.initialize=directions", "ladder.share=none"],
}
CALIBRATED = ("Fisher", "directions of pictures")  # rows that look at pictures
_BEFORE = ["ladder.align=select", "ladder.first=tap"]
# ladders that differ in the number of token prompts a rung; all can be condensed
COUNTS = {f"{count} prompts": [f"ladder.prompts.length={count}"] for count in (1, 4, 16, 32, 64)}
GROUPS = {
    "methods": HOST,
    "counts": COUNTS,
    "importance": {k: [*_BEFORE, *v] for k, v in IMPORTANCE.items()},
}
# name of the row: --set of `edgeladder train`, on any bundle with masks
DEVICE: dict[str, list[str]] = {
    "plain": [],
    "condensed to 30 %": ["ladder.prompts.keep=0.3"],
    "prototypes": ["ladder.prompts.initialize=prototypes"],
    "samples": ["ladder.prompts.initialize=samples"],
    "averaging": ["train.average=0.95"],
    "no pull": ["loss.proximal=0"],
    "KL to zero-shot": ["loss.anchor=0.3"],
}


def main() -> None:
    """Export what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="nano")
    parser.add_argument("--pretrained", default=None)
    parser.add_argument("--profile", default="nano")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--group", choices=list(GROUPS), default="methods")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="A.B=C")
    parser.add_argument("--calibration", type=Path, help="pictures for the rows that look at some")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some rows of the group")
    arguments = parser.parse_args()
    rows = GROUPS[arguments.group]
    unknown = set(arguments.only or []) - set(rows)
    if unknown:
        parser.error(f"--only: no row {sorted(unknown)} in {list(rows)}")
    from edgeladder.core.yaml_config import load_profile
    from edgeladder.host.export import ExportOptions, export

    for name in arguments.only or rows:
        folder = arguments.out / name
        if not folder.exists():
            profile = load_profile(arguments.profile, [*arguments.settings, *rows[name]])
            calibration = arguments.calibration if name in CALIBRATED else None
            export(
                *(arguments.model, arguments.pretrained, profile),
                ExportOptions(engine="stock", dtype=arguments.dtype, calibration=calibration),
                out=folder,
            )
        print(folder, flush=True)


if __name__ == "__main__":
    main()
