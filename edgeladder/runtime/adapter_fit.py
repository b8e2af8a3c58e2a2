"""Whether what an adapter brings beside the ladder can be computed at all: asked as it is opened.

An adapter may come from elsewhere with hashes that are right and arrays that are nobody's. The
ladder's own tensors are held to its graph (`Adapter.apply`, `Encoder`); a head and the rows of
known pictures are tried here on one picture of ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.errors import IntegrityError
from edgeladder.runtime.logits import Activations

if TYPE_CHECKING:
    from edgeladder.core.manifest import Manifest
    from edgeladder.runtime.known import Known
    from edgeladder.runtime.logits import ClassLogits


def require_fit(
    manifest: Manifest, formula: ClassLogits, known: Known | None, classes: int, *, where: str
) -> None:
    """Refuse a head, or rows of known pictures, that do not go with the bundle.

    Args:
        manifest: of the bundle.
        formula: with the adapter's head, if it has one.
        known: if it has that.
        classes: that are chosen among.
        where: the adapter's folder, for the error.

    Raises:
        IntegrityError: arrays of other shapes, or places of features that there are not.
    """
    if formula.head is None and known is None:
        return
    part = "head"
    try:
        features = _picture(manifest).features()
        with np.errstate(all="ignore"):
            if formula.head is not None:
                own = classes if formula.head_columns is None else len(formula.head_columns)
                zero_shot = np.zeros((1, own), np.float32)
                _require_shape(formula.head.logits(features, zero_shot), (1, own))
            part = "rows of known pictures"
            if known is not None:
                _require_shape(known.scores(features), (1,))
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise IntegrityError(
            f"the adapter's {part} cannot be of this bundle: {error}",
            where=where,
            remedy="copy the adapter again from the run that wrote it, or train again",
        ) from error


def _require_shape(found: np.ndarray, wanted: tuple[int, ...]) -> None:
    if found.shape != wanted:
        raise ValueError(f"it gives {list(found.shape)} for {list(wanted)}")


def _picture(manifest: Manifest) -> Activations:
    """What a tower would give of one picture, all ones."""
    taps = [
        np.ones((len(group.taps), group.tokens, 1, group.width), np.float32)
        for group in manifest.ladder.groups
        if group.side == "image"
    ]
    outputs = [item for segment in manifest.image.segments for item in segment.outputs]
    widths = {item.name: item.shape[-1] for item in outputs}
    extra = {
        name: np.ones((1, widths[manifest.image.embedding_pre or ""]), np.float32)
        for name in manifest.ladder.image_inputs
    }
    return Activations(taps, np.ones((1, manifest.model.embedding_dim), np.float32), extra)
