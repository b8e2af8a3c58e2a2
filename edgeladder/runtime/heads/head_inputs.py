"""What a closed-form head reads of some pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class HeadInputs:
    """Pictures' features, labels and zero-shot logits."""

    features: list[Array]  # per tap (n, W), the final embedding last
    labels: Array  # (n,)
    zero_shot: Array  # (n, C) logits
    projected: bool = False  # the last feature but one is the embedding before CLIP's projection

    def rows(self, rows: Array) -> HeadInputs:
        """Some of them."""
        return replace(
            self,
            features=[tap[rows] for tap in self.features],
            labels=self.labels[rows],
            zero_shot=self.zero_shot[rows],
        )

    def followed_by(self, others: HeadInputs) -> HeadInputs:
        """Both, one after the other."""
        taps = zip(self.features, others.features, strict=True)
        return replace(
            self,
            features=[np.concatenate(pair) for pair in taps],
            labels=np.concatenate([self.labels, others.labels]),
            zero_shot=np.concatenate([self.zero_shot, others.zero_shot]),
        )
