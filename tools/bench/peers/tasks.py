"""What a peer learns from and is tested on: the product's own split of a data set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from edgeladder.runtime.pictures.dataset import Dataset, Picture, open_data, split


@dataclass(frozen=True)
class PeerTask:
    """Classes, the pictures to learn them from, and those to test on."""

    dataset: Dataset
    classes: list[str]  # folders
    names: list[str]  # readable
    support: list[Picture]
    tested: list[Picture]
    new: PeerTask | None = None  # the classes that training does not see

    def labels(self, pictures: list[Picture]) -> Tensor:
        """(n,) indices into `names`."""
        return torch.from_numpy(self.dataset.labels(pictures, self.classes).astype(np.int64))


def first_of(pictures: list[Picture], per_class: int) -> list[Picture]:
    """The first so many pictures of each class."""
    kept: dict[str, list[Picture]] = {}
    for picture in pictures:
        kept.setdefault(picture.label, []).append(picture)
    return [p for group in kept.values() for p in group[:per_class]]


def open_task(
    data: Path, shots: int, seed: int, *, per_class: int | None = None, halves: bool = False
) -> PeerTask:
    """The pictures that `edgeladder train` would learn from and test on.

    Args:
        data: as `--data` has it.
        shots: pictures a class.
        seed: of their choice.
        per_class: test pictures a class; None: all.
        halves: only the first half of the classes, the others as `new`, as CoCoOp splits them.
    """
    dataset = open_data(data)
    support, tested = split(dataset, shots, seed)
    if per_class is not None:
        tested = first_of(tested, per_class)

    def part(start: int, stop: int, new: PeerTask | None = None) -> PeerTask:
        classes = dataset.classes[start:stop]
        return PeerTask(
            dataset,
            classes,
            dataset.class_names[start:stop],
            [p for p in support if p.label in classes],
            [p for p in tested if p.label in classes],
            new,
        )

    count = len(dataset.classes)
    half = math.ceil(count / 2)
    return part(0, half, part(half, count)) if halves else part(0, count)
