"""The learning rate over time: linear warm-up, then half a cosine down to zero."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, warmup_steps: int, peak: float) -> float:
    """The rate of step `step` (counted from 0) of `steps`.

    Rises linearly to `peak` over `warmup_steps`, then follows SGDR's cosine (arXiv:1608.03983,
    eq. 5, one cycle) and would reach zero one step after the last.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * peak * (1.0 + math.cos(math.pi * min(1.0, progress)))
