"""What the shipped weights were made with, and what both trainings share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True)
class Settings:
    """The recipe's numbers."""

    text_steps: int = 400
    text_batch: int = 128
    text_rate: float = 1e-3
    sharpness: float = 8.0  # of a text's likeness to class names: higher, fewer classes
    name_share: float = 0.15  # of the score: ConSE
    kind_share: float = 0.35  # class mixtures; the rest is the projections'
    project_steps: int = 300
    project_batch: int = 512
    project_rate: float = 1e-3
    blurred: float = 0.7  # of the pictures
    logit_scale: float = 30.0


def anneal(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """A short warm-up, a constant rate, and a straight line to zero over the last third."""
    warm, last = min(1.0, (step + 1) / 20), min(1.0, 3 * (steps - step) / steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * warm * last


class Checkpoint:
    """Modules and their optimiser in one file; it is taken up only by the settings that made it."""

    def __init__(
        self, path: Path, key: str, optimizer: torch.optim.Optimizer, **modules: nn.Module
    ):
        self._path, self._key = path, key
        self._parts = {**modules, "optimizer": optimizer}

    def resume(self) -> int:
        """Take up what is stored; the number of steps that are done."""
        if not self._path.is_file():
            return 0
        stored = torch.load(self._path, weights_only=True)
        if stored["settings"] != self._key:
            return 0
        for name, part in self._parts.items():
            part.load_state_dict(stored[name])
        return int(stored["step"])

    def save(self, step: int) -> None:
        """Write so that a kill leaves the last one or this one."""
        partial = self._path.with_suffix(".part")
        values = {name: part.state_dict() for name, part in self._parts.items()}
        torch.save({"settings": self._key, "step": step, **values}, partial)
        partial.rename(self._path)
