"""The suite's tiny bundle: a small CLIP with untrained weights.

    python -m tests.make_bundle FOLDER

Needs the host's packages. It goes the same road as any model: an open_clip model definition,
random weights of seed 0, the profile `tiny`, graphs for both engines.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

MODEL = "edgeladder-tiny"
DEFINITION = {
    "embed_dim": 32,
    "vision_cfg": {
        "image_size": 32,
        "layers": 4,
        "width": 64,
        "head_width": 16,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 16,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 3,
    },
}
CLASSES = ["class0", "class1", "class2"]


def register_model() -> str:
    """Make the tiny model known to open_clip; returns its name."""
    import open_clip

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{MODEL}.json"
        path.write_text(json.dumps(DEFINITION))
        open_clip.add_model_config(path)
    return MODEL


def make_bundle(out: Path, *, profile: str = "tiny") -> Path:
    """Export the tiny model with a shipped profile; returns the bundle's folder."""
    from edgeladder.core.yaml_config import load_profile
    from edgeladder.host.export import ExportOptions, export

    bundle = export(
        register_model(),
        "none",
        load_profile(profile),
        ExportOptions(CLASSES),
        out=Path(out),
    )
    return bundle.folder


if __name__ == "__main__":
    print(make_bundle(Path(sys.argv[1])))
