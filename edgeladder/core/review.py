"""What `check` finds and what a person decides: records of both, standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["identical", "similar"]


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A picture whose label is probably wrong."""

    path: str
    label: str  # as it was given
    probability: float  # of that label, by models that did not see this picture
    suggested: str
    suggested_probability: float


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a picture is."""

    path: str
    label: str
    split: str


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """Pictures that are one and the same, or nearly, in two classes or on two sides of a split."""

    kind: Kind
    similarity: float  # the lowest cosine between two of them; 1: the same bytes
    across_classes: bool
    across_splits: bool
    pictures: list[Place]


@dataclass(frozen=True, kw_only=True)
class Confused:
    """Two classes of which one is taken for the other, by models that did not see the picture."""

    classes: list[str]  # two
    count: int  # pictures taken for the other one
    share: float  # of the pictures of both


@dataclass(frozen=True, kw_only=True)
class SmallClass:
    """A class with too few training pictures."""

    label: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Review:
    """The `check` JSON."""

    count: int  # pictures that can be read
    classes: list[str]
    suspects: list[Suspect]  # most suspicious first
    suspected: int  # all of them, where not all are listed
    duplicates: list[Duplicate]
    repeated: int  # further pictures that are there twice within one class and side
    confused: list[Confused]
    few: int  # pictures below which a class is called small
    small_classes: list[SmallClass]
    skipped: list[dict[str, str]]  # path and reason
    new: int = 0  # pictures whose activations were computed now
    reused: int = 0
    judged: bool = True  # False: no two classes with two pictures, so no label can be judged
    thumbnails: dict[str, str] = field(default_factory=dict)  # path -> JPEG in base64
