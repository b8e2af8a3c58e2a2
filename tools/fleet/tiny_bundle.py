"""A bundle with random weights and no model behind it: something to push, train and average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from edgeladder.core.bundle import Bundle, write_manifest
from edgeladder.core.config import Profile
from edgeladder.core.manifest import (
    GRAPHS,
    GraphRecord,
    LadderRecord,
    Manifest,
    ModelRecord,
    ParameterRecord,
    PreprocessRecord,
    TokenizerRecord,
    TowerRecord,
)
from edgeladder.core.onnx_graph import one_node_model
from edgeladder.core.protobuf import FLOAT

_GRAPH = "ladder/forward.onnx"


def write_bundle(folder: Path, *, weights_bytes: int, width: int = 4) -> Bundle:
    """Write a bundle whose adapter has 3 x `width` + `width` parameters."""
    (folder / "ladder").mkdir(parents=True)
    (folder / "backbone").mkdir()
    values = {
        "up.weight": np.arange(3 * width, dtype=np.float32).reshape(3, width),
        "up.bias": np.zeros(width, dtype=np.float32),
    }
    save_file(values, str(folder / "ladder" / "init.safetensors"))
    (folder / _GRAPH).write_bytes(one_node_model("Relu", FLOAT, FLOAT))
    weights = np.random.default_rng(0).bytes(weights_bytes)
    (folder / "backbone" / "weights.bin").write_bytes(weights)
    tower = TowerRecord(segments=[], taps=[], embedding="embedding", digest="0" * 64)
    model = ModelRecord(
        name="tiny", pretrained="none", origin="test", licence="none", embedding_dim=4,
        logit_scale=10.0,
    )  # fmt: skip
    ladder = LadderRecord(
        parameters=[
            ParameterRecord(name=name, shape=list(value.shape), decay=True)
            for name, value in values.items()
        ],
        groups=[],
        forward=_GRAPH,
        initial="ladder/init.safetensors",
        golden="ladder/init.safetensors",
        graphs={name: GraphRecord(file=_GRAPH, inputs=[], outputs=[], nodes=1) for name in GRAPHS},
    )
    manifest = Manifest(
        model=model,
        preprocess=PreprocessRecord(size=8, mean=[0.5] * 3, std=[0.5] * 3),
        tokenizer=TokenizerRecord(kind="nano", files=[], context_length=4),
        image=tower,
        text=tower,
        ladder=ladder,
        profile=Profile(name="tiny"),
    )
    write_manifest(folder, manifest)
    return Bundle.open(folder)
