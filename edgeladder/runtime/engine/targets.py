"""Soft targets: labels, smoothing and the pull to zero-shot in one matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgeladder.runtime.engine.protocol import StepInputs
from edgeladder.runtime.logits import ClassLogits

if TYPE_CHECKING:
    from edgeladder.core.config import LossConfig


def soft_targets(inputs: StepInputs, loss: LossConfig, logits: ClassLogits) -> np.ndarray:
    """(B, C) float32: (1 - s) onehot + s / C + anchor * softmax of the zero-shot logits.

    KL(zero-shot || tuned) differs from the cross-entropy against the zero-shot distribution by
    its entropy, which does not depend on the parameters, so its gradient is all in the targets.
    """
    count, classes = len(inputs.labels), len(inputs.text_embedding)
    targets = np.full((count, classes), loss.smoothing / classes, np.float32)
    targets[np.arange(count), inputs.labels] += 1.0 - loss.smoothing
    if loss.anchor:
        # in place: (B, C) is large where there are many classes
        powers = logits.similarity(inputs.image_embedding, inputs.text_embedding)
        powers -= powers.max(axis=1, keepdims=True)
        np.exp(powers, out=powers)
        targets += loss.anchor * powers / powers.sum(axis=1, keepdims=True)
    return targets
