"""What an average is made of and what came of it: the records that aggregation hands about."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeladder.core.errors import ConfigError
from edgeladder.core.records import read_record

ADAPTER = "adapter.safetensors"
RESULT = "aggregate.json"
MOST_PICTURES = 10_000_000  # a terabyte of photographs: no box has more
Method = Literal["mean", "trimmed", "median"]
# For trainings whose adapters are to be averaged: a closed-form head is fitted to one box's own
# features, and cannot be; nor do features of its pictures leave a box for that. The whole section,
# since a weight without a head is refused.
HEADLESS = "head={kind: none, known: false}"


@dataclass(frozen=True)
class Contribution:
    """One box's adapter folder and the number of pictures it was trained on."""

    name: str
    folder: Path
    pictures: float = 1.0


@dataclass(frozen=True)
class Averaging:
    """How adapters become one."""

    method: Method = "mean"  # only `mean` weighs by pictures
    # share of values dropped at each end by `trimmed`; at least one from three boxes on
    trim: float = 0.2
    # an adapter further from the start than `bound` times the median distance is refused; of two,
    # one that is `bound` times as far as the other
    bound: float = 10.0
    shots: int | None = None  # pictures of a class that the boxes were told to train on, at most

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise ConfigError(
                f"--trim {self.trim} is not in [0, 0.5)", remedy="drop at most each end's half"
            )
        if not self.bound > 1:
            raise ConfigError(f"--bound {self.bound} is not above 1", remedy="10 is a good bound")


@dataclass(frozen=True)
class Start:
    """What all boxes began from, to measure how far each went."""

    file: Path | None = None  # safetensors; None: distances from their median
    zeros: Collection[str] = ()  # tensors that began at zero where the file leaves them out


BY_PICTURES = Averaging()
FROM_MEDIAN = Start()


@dataclass(frozen=True)
class AggregateResult:
    """Who is in the average and who is not: aggregate.json."""

    method: Method
    weights: dict[str, float] = field(default_factory=dict)  # sum to 1
    refused: dict[str, str] = field(default_factory=dict)  # name -> why
    distances: dict[str, float] = field(default_factory=dict)  # L2, from the start or the median

    @classmethod
    def read(cls, folder: Path) -> AggregateResult | None:
        """Of an average's folder, or None where there is no average."""
        path = folder / RESULT
        if not path.is_file():
            return None
        return read_record(cls, path, others_keys=True)
