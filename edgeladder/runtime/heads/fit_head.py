"""A closed-form head fitted after training, from the cache, as a term beside the ladder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.runtime.heads.closed_form import Head, Kind, fit_head
from edgeladder.runtime.scoring import head_features

if TYPE_CHECKING:
    from edgeladder.runtime.engine.protocol import StepInputs

Array = np.ndarray

# Both terms are log-odds at a temperature of their own choosing, so their sum is a product of
# experts. The ladder's own support logits cannot weigh it: it was trained on them.
DEFAULT_HEAD_WEIGHT = 1.0
MOST_PICTURES = 600  # that a kernel is fitted on, classes alike: its memory is theirs squared


def pictures_to_fit(kind: str, pictures: int, classes: int) -> int:
    """How many of the training pictures a head is fitted on where there is room for it.

    What a kernel holds grows with them, twice over; a class without a picture has no mean.
    """
    return pictures if kind == "gda" else min(pictures, max(MOST_PICTURES, classes))


def fixed_head_weight(
    weight: float | None, full_at: int | None, pictures: int, classes: int
) -> float:
    """Eta of `logits = ladder + eta * head` where nothing held out chooses it.

    Args:
        weight: the profile's `head.weight`; None: 1.
        full_at: the profile's `head.full_at`: from so many pictures of a class the weight counts
            in full, below in proportion; None: always in full.
        pictures: of the training set, all classes together.
        classes: C.

    A head knows what the pictures say, a ladder begins at zero-shot: the fewer pictures, the more
    that beginning is worth.
    """
    if weight is None:
        return DEFAULT_HEAD_WEIGHT
    if full_at is None:
        return float(weight)
    return float(weight) * min(1.0, pictures / (classes * full_at))


def fit_cached_head(
    model: Any,
    windows: Iterable[StepInputs],
    kind: Kind,
    *,
    chunk: int = 64,
    seed: int = 0,
) -> Head:
    """Fit a head on the cached training pictures.

    Args:
        model: the manifest's `model` record: scale and bias of the zero-shot logits.
        windows: the training pictures, plain view.
        kind: gda, proker, kernel or blend.
        chunk: pictures whose taps are widened to fp32 at a time.
        seed: of the sample that the kernel's search looks at.

    Features are held in fp16 while they are gathered: two bytes per picture and channel, which
    only kernel and blend need for more than the final embedding.
    """
    parts: list[list[Array]] = []
    labels, zero_shot = [], []
    extra: dict[str, Array] = {}
    for inputs in windows:
        count = len(inputs.labels)
        for start in range(0, count, chunk):
            stop = min(start + chunk, count)
            embedding = inputs.image_embedding[start:stop]
            deep = kind in ("kernel", "blend")
            taps = inputs.image_taps(start, stop) if deep else []
            extra = {n: v[start:stop] for n, v in inputs.image_extra.items()} if deep else {}
            rows = head_features(taps, embedding, extra)
            parts.append([row.astype(np.float16) for row in rows[:-1]] + [rows[-1]])
            logits = model.logit_scale * (embedding @ inputs.text_embedding.T)
            zero_shot.append(logits + float(getattr(model, "logit_bias", 0.0)))
        labels.append(np.asarray(inputs.labels))
    features = [np.concatenate([part[k] for part in parts]) for k in range(len(parts[0]))]
    del parts
    return fit_head(
        kind,
        features,
        np.concatenate(labels),
        np.concatenate(zero_shot),
        seed=seed,
        projected=bool(extra),
    )
