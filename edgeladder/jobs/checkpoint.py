"""Checkpoints that a power cut cannot tear: two generations, each one safetensors file.

The loop's own state (step, sampler, random state) is JSON in the file's metadata, so that one
rename publishes everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core import disk
from edgeladder.core.errors import IntegrityError
from edgeladder.core.tensors import TensorFile, write_tensors

KEEP = 2  # generations: the newest, and the one before should the newest be unreadable


@dataclass(frozen=True)
class Restored:
    """A generation to go on from."""

    tensors: TensorFile
    loop: dict[str, Any]
    damaged: tuple[str, ...]  # newer generations, passed over


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
            disk.unlink(old)
        return path

    def latest(self) -> Restored | None:
        """The newest generation that is whole, header and all; None where there is none at all.

        Damaged ones newer than it are removed: they would count as one of the two that are kept.

        Raises:
            IntegrityError: there are generations, and every one of them is damaged. Whoever goes
                on without them decides so, because the steps they held are lost.
        """
        damaged: list[str] = []
        for path in self._generations():
            try:
                tensors = TensorFile(path)
                if not tensors.intact():
                    raise ValueError("its checksum is not the one it was written with")
                found = Restored(tensors, json.loads(tensors.metadata["loop"]), tuple(damaged))
            except (IntegrityError, KeyError, ValueError):
                damaged.append(path.name)
                continue
            for name in damaged:
                disk.unlink(self.folder / name)
            return found
        if damaged:
            raise IntegrityError(
                f"no checkpoint of this run is whole: {', '.join(damaged)}",
                where=str(self.folder),
                remedy="delete this folder and run the same command again: training starts at "
                "step 0 and ends with the same adapter, from the same cache. Checkpoints of "
                "versions before 0.3 cannot be told from damaged ones",
            )
        return None

    def forget(self, step: int) -> None:
        """Remove a generation that is whole and of no use, where there is another."""
        if len(self._generations()) > 1:
            disk.unlink(self.folder / f"step-{step:09d}.safetensors")

    def clean(self) -> None:
        """Remove what a killed writer left behind."""
        for stray in self.folder.glob(".step-*.tmp"):
            disk.unlink(stray)

    def _generations(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)
