"""Checkpoints that a power cut cannot tear: two generations, each one safetensors file.

The loop's own state (step, sampler, random state) is JSON in the file's metadata, so that one
rename publishes everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.errors import IntegrityError
from edgeladder.core.tensors import TensorFile, write_tensors

KEEP = 2  # generations: the newest, and the one before should the newest be unreadable


class Checkpoints:
    """The `checkpoints/` folder of a run."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def save(self, step: int, tensors: Mapping[str, np.ndarray], loop: dict[str, Any]) -> Path:
        """Write generation `step` and remove all but the two newest.

        Raises:
            StorageError: no space; the generations already there are untouched.
        """
        path = self.folder / f"step-{step:09d}.safetensors"
        write_tensors(path, tensors, {"loop": json.dumps({**loop, "step": step})})
        for old in self._generations()[KEEP:]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> tuple[TensorFile, dict[str, Any]] | None:
        """The newest generation that is whole, with the loop's state; None where there is none."""
        for path in self._generations():
            try:
                tensors = TensorFile(path)
                loop = json.loads(tensors.metadata["loop"])
                if tensors.intact():
                    return tensors, loop
            except (IntegrityError, KeyError, ValueError):
                continue
        return None

    def clean(self) -> None:
        """Remove what a killed writer left behind."""
        for stray in self.folder.glob(".step-*.tmp"):
            stray.unlink(missing_ok=True)

    def _generations(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)
