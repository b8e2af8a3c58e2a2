"""Which pictures a person should label next: the `suggest` JSON. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Reason = Literal["covers", "uncertain"]


@dataclass(frozen=True, kw_only=True)
class Suggested:
    """One picture, in the order in which it should be labelled."""

    path: str
    reason: Reason
    stands_for: int  # unlabelled pictures that are most like it
    guess: str | None = None  # a run's most probable label
    probability: float | None = None


@dataclass(frozen=True, kw_only=True)
class Suggestions:
    """The `suggest` JSON."""

    pictures: list[Suggested]
    unlabelled: int  # pictures of different content without a label
    labelled: int
    known: int  # unlabelled pictures whose very bytes have a label already
    classes: list[str]
    run: str | None  # whose uncertainty counted; None: covering alone
    skipped: list[dict[str, str]]  # path and reason
    new: int = 0  # pictures whose activations were computed now
    reused: int = 0
    thumbnails: dict[str, str] = field(default_factory=dict)  # path -> JPEG in base64
