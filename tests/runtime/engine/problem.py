"""A training problem for a bundle's ladder: random taps, classes that can be told apart."""

from __future__ import annotations

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.runtime.engine.golden import ArrayInputs, groups_of


def problem(bundle: Bundle, *, batch: int = 6, classes: int = 5, seed: int = 0) -> ArrayInputs:
    """Inputs of a step; a picture's embedding lies near its class's."""
    random = np.random.default_rng(seed)
    ladder = bundle.manifest.ladder
    counts = {"image": batch, "text": classes}

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    arrays = {
        g.input: normal(len(g.taps), g.tokens, counts[g.side], g.width) for g in ladder.groups
    }
    labels = np.arange(batch) % classes
    text = unit(normal(classes, bundle.manifest.model.embedding_dim))
    arrays["text_embedding"] = text
    arrays["image_embedding"] = unit(text[labels] + 0.3 * normal(batch, text.shape[1]))
    arrays["targets"] = np.eye(classes, dtype=np.float32)[labels]
    widths = {p.name: p.shape[0] for p in ladder.parameters}
    for name in ladder.image_inputs:
        arrays[name] = 0.1 * normal(batch, widths["project"])
    return ArrayInputs(arrays, groups_of(bundle))
