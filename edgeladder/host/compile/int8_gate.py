"""The gate of an int8 tower: how near it is to the library's own float32 forward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from edgeladder.core.config import TapConfig
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.manifest import Int8Record, TowerRecord
from edgeladder.host.compile.int8_choice import BOUND
from edgeladder.host.compile.segments import run_segments
from edgeladder.host.model.backbone import Backbone
from edgeladder.host.model.fisher import Calibration
from edgeladder.host.model.probe import TEXTS
from edgeladder.runtime.pictures.decode import normalize
from edgeladder.runtime.pictures.drawn import drawn_pictures
from edgeladder.runtime.towers.tokens import Tokenizer

LEAST_COSINE = 0.99  # of every tap and embedding of every calibration input
SAMPLES = 8  # of a calibration batch: maxima of more hardly grow, and each passes the whole tower


@dataclass(frozen=True)
class Batch:
    """What a tower is calibrated on: (n, 3, S, S) pixels or (n, context) tokens."""

    inputs: Tensor
    origin: Literal["pictures", "drawn", "sentences"]


def calibration_batches(
    backbone: Backbone, tokenizer: Tokenizer, given: Calibration | None
) -> dict[str, Batch]:
    """A batch by side: given pictures, classes in turn, or drawn ones; plain sentences."""
    texts = torch.from_numpy(tokenizer.encode(list(TEXTS[:SAMPLES])))
    if given is not None:
        every = max(1, len(given.pixels) // SAMPLES)
        image = Batch(given.pixels[::every][:SAMPLES], "pictures")
    else:
        squares = drawn_pictures(backbone.preprocess.size)[:SAMPLES]
        image = Batch(torch.from_numpy(normalize(squares, backbone.preprocess)), "drawn")
    return {"image": image, "text": Batch(texts, "sentences")}


def check_int8(
    backbone: Backbone,
    side: str,
    record: TowerRecord,
    config: TapConfig,
    folder: Path,
    batch: Batch,
) -> TowerRecord:
    """Run the chained segments on the calibration batch beside the library's forward pass.

    Returns:
        The record, with what was found.

    Raises:
        EdgeLadderError: an output of an input has a cosine below `LEAST_COSINE`.
    """
    with torch.no_grad():
        wanted = backbone.tower(side).reference(batch.inputs, record.taps, config)
    found = run_segments(record, folder, batch.inputs.numpy())
    cosines = {}
    for name, reference in wanted.items():
        cosines[name] = round(least_cosine(found[name], reference.numpy()), 5)
        if not cosines[name] >= LEAST_COSINE:
            raise EdgeLadderError(
                f"int8 moves {name!r} too far: a cosine of {cosines[name]:.3f} to float32",
                where=f"{side} tower of {backbone.name}",
                remedy="give pictures of the place with --calibration, or export with "
                "--dtype int8-weights",
            )
    described = Int8Record(
        calibration=batch.origin, samples=len(batch.inputs), bound=BOUND, cosines=cosines
    )
    return replace(record, int8=described)


def least_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """The least over the samples, each output (n, ..) of a sample as one vector."""
    left, right = (rows.reshape(len(rows), -1).astype(np.float64) for rows in (found, expected))
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(1) / np.maximum(lengths, 1e-12)).min())


def spell_int8(record: TowerRecord) -> str:
    """`46 of 48 products in int8, the largest error 3.1 %; least cosine 0.9990`."""
    products = [product for segment in record.segments for product in segment.products]
    kept = [product.error for product in products if product.arithmetic == "int8"]
    cosines = record.int8.cosines.values() if record.int8 is not None else ()
    words = f"{len(kept)} of {len(products)} products in int8"
    if kept:
        words += f", the largest error {max(kept):.1%}"
    return f"{words}; least cosine {min(cosines, default=1.0):.4f}"
