"""Two runs on the same pictures: what each said of every one, and where they differ.

Standard library only: the command that waits for the workers counts inside the budget.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from edgeladder.core.intervals import Interval, wilson

Change = Literal["mended", "broken", "other"]  # wrong then right, right then wrong, both wrong


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What one run says of one labelled picture."""

    path: str
    content: str  # SHA-256 of its bytes, in hexadecimal
    label: str  # that a person gave it
    predicted: str
    probability: float
    trained_on: bool = False  # the run has seen it, whatever it is called


@dataclass(frozen=True, kw_only=True)
class Judgements:
    """What one run says of all pictures."""

    classes: list[str]
    pictures: list[Judgement]
    skipped: list[str] = field(default_factory=list)  # paths that cannot be read
    split: str = "all"


@dataclass(frozen=True, kw_only=True)
class Said:
    """A run's most probable label of one picture."""

    label: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A picture of which the two runs say different things."""

    path: str
    label: str
    change: Change
    old: Said
    new: Said


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two runs."""

    run: str
    correct: int
    count: int
    accuracy: float | None
    interval: Interval | None  # Wilson's 95 %


@dataclass(frozen=True, kw_only=True)
class ClassPair:
    """One class under both runs."""

    count: int
    old: float
    new: float
    old_interval: Interval | None
    new_interval: Interval | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The `compare` JSON: two runs on the same pictures, which neither was trained on.

    Accuracies are of pictures whose class both runs know; `new_classes` holds what the new one
    makes of pictures of classes that the old one never saw.
    """

    old: Side
    new: Side
    count: int  # pictures of classes that both know
    split: str
    better: Literal["old", "new", "equal"]
    p_value: float  # of a difference at least as large, were neither better (exact McNemar test)
    mended: int
    broken: int
    differences: list[Difference]
    per_class: dict[str, ClassPair]
    only_old: list[str]  # classes
    only_new: list[str]
    new_classes: Side | None  # None: there are no pictures of them
    new_classes_count: int
    trained_on: int  # pictures left out, because one of the runs was trained on them
    skipped: list[str] = field(default_factory=list)


def compared(old_run: str, old: Judgements, new_run: str, new: Judgements) -> Comparison:
    """Put two runs' judgements of the same pictures beside each other.

    Pictures that one of the runs was trained on are left out: they say which run has seen them.
    Two pictures of one content and label count once.
    """
    earlier = {item.path: item for item in old.pictures}
    seen: set[tuple[str, str]] = set()
    pairs: list[tuple[Judgement, Judgement]] = []
    left_out = 0
    for item in new.pictures:
        other = earlier.get(item.path)
        if other is None or (item.content, item.label) in seen:
            continue
        seen.add((item.content, item.label))
        if item.trained_on or other.trained_on:
            left_out += 1
        else:
            pairs.append((other, item))
    known = set(old.classes) & set(new.classes)
    shared = [pair for pair in pairs if pair[1].label in known]
    added = [item for _, item in pairs if item.label not in set(old.classes)]
    mended = sum(_right(b) and not _right(a) for a, b in shared)
    broken = sum(_right(a) and not _right(b) for a, b in shared)
    return Comparison(
        old=_side(old_run, [a for a, _ in shared]),
        new=_side(new_run, [b for _, b in shared]),
        count=len(shared),
        split=new.split,
        better="equal" if mended == broken else "new" if mended > broken else "old",
        p_value=sign_test(mended, broken),
        mended=mended,
        broken=broken,
        differences=[_difference(a, b) for a, b in shared if a.predicted != b.predicted],
        per_class=_per_class(shared),
        only_old=sorted(set(old.classes) - known),
        only_new=sorted(set(new.classes) - known),
        new_classes=_side(new_run, added) if added else None,
        new_classes_count=len(added),
        trained_on=left_out,
        skipped=sorted({*old.skipped, *new.skipped}),
    )


def sign_test(one: int, other: int) -> float:
    """Two-sided exact binomial test of two counts being of equal chance (McNemar, 1947).

    `min(1, 2 sum_{k <= min} C(n, k) / 2^n)` with `n = one + other`.
    """
    count = one + other
    below = sum(math.comb(count, k) for k in range(min(one, other) + 1))
    return min(1.0, float(2 * below / 2**count))


def _right(item: Judgement) -> bool:
    return item.predicted == item.label


def _side(run: str, items: list[Judgement]) -> Side:
    correct = sum(map(_right, items))
    return Side(
        run=run,
        correct=correct,
        count=len(items),
        accuracy=correct / len(items) if items else None,
        interval=wilson(correct, len(items)),
    )


def _difference(old: Judgement, new: Judgement) -> Difference:
    change: Change = "mended" if _right(new) else "broken" if _right(old) else "other"
    return Difference(
        path=new.path,
        label=new.label,
        change=change,
        old=Said(label=old.predicted, probability=old.probability),
        new=Said(label=new.predicted, probability=new.probability),
    )


def _per_class(pairs: list[tuple[Judgement, Judgement]]) -> dict[str, ClassPair]:
    found: dict[str, ClassPair] = {}
    for name in sorted({new.label for _, new in pairs}):
        of = [pair for pair in pairs if pair[1].label == name]
        old, new = sum(_right(a) for a, _ in of), sum(_right(b) for _, b in of)
        found[name] = ClassPair(
            count=len(of),
            old=old / len(of),
            new=new / len(of),
            old_interval=wilson(old, len(of)),
            new_interval=wilson(new, len(of)),
        )
    return found
