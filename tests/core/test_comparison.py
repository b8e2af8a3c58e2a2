"""Two runs' judgements beside each other: who is better, and on which pictures."""

from __future__ import annotations

from math import comb

import pytest

from edgeladder.core.comparison import Judgement, Judgements, compared, sign_test
from edgeladder.core.intervals import wilson


def said(answers: str, *, classes: str = "ab", seen: str = "", labels: str = "") -> Judgements:
    """Picture k is of class `labels[k]` (or a), and predicted as `answers[k]`."""
    labels = labels or "a" * len(answers)
    return Judgements(
        classes=list(classes),
        pictures=[
            Judgement(
                path=f"{k}.png",
                content=f"{k:02x}",
                label=label,
                predicted=answer,
                probability=0.5,
                trained_on=str(k) in seen,
            )
            for k, (answer, label) in enumerate(zip(answers, labels, strict=True))
        ],
    )


def test_who_is_better_is_said_of_the_same_pictures():
    found = compared("old", said("aabba"), "new", said("abaaa"))
    assert (found.old.accuracy, found.new.accuracy, found.count) == (0.6, 0.8, 5)
    assert (found.better, found.mended, found.broken) == ("new", 2, 1)
    assert [(d.path, d.change) for d in found.differences] == [
        ("1.png", "broken"), ("2.png", "mended"), ("3.png", "mended")
    ]  # fmt: skip
    assert found.new.count == 5 and found.new.interval == pytest.approx(wilson(4, 5))
    assert found.old.interval == pytest.approx(wilson(3, 5))
    pair = found.per_class["a"]
    assert (pair.count, pair.old, pair.old_interval) == (5, 0.6, found.old.interval)
    nothing = compared("old", said("aa", seen="01"), "new", said("ab"))
    assert (nothing.new.count, nothing.new.accuracy, nothing.new.interval) == (0, None, None)
    assert compared("old", said("aa"), "new", said("ab")).better == "old"
    assert compared("old", said("ab"), "new", said("ab")).differences == []


def test_what_either_was_trained_on_says_nothing():
    found = compared("old", said("aabb", seen="0"), "new", said("abab", seen="3"))
    assert (found.count, found.trained_on) == (2, 2)
    assert (found.old.correct, found.new.correct) == (1, 1)


def test_a_class_that_the_old_one_never_saw_is_counted_apart():
    old = said("aab", labels="aac", classes="ab")
    found = compared("old", old, "new", said("abc", labels="aac", classes="abc"))
    assert found.count == 2 and found.better == "old"
    assert found.only_new == ["c"] and found.only_old == []
    assert found.new_classes is not None and found.new_classes.accuracy == 1.0
    assert found.new_classes_count == 1


def test_equal_pictures_count_once():
    twice = said("ab")
    doubled = Judgements(classes=twice.classes, pictures=[*twice.pictures, *twice.pictures])
    assert compared("old", twice, "new", doubled).count == 2


@pytest.mark.parametrize(("one", "other"), [(0, 0), (5, 5), (0, 6), (2, 9), (30, 12)])
def test_the_sign_test_is_the_binomials(one: int, other: int):
    count = one + other
    extreme = [k for k in range(count + 1) if abs(2 * k - count) >= abs(one - other)]
    expected = sum(comb(count, k) for k in extreme) / 2**count
    assert sign_test(one, other) == pytest.approx(min(1.0, expected))
