"""Which pictures stand for the others, and which a run is least sure of."""

from __future__ import annotations

import numpy as np
import pytest

from edgeladder.runtime.review.suggest import choose, reduced


def heaps(sizes: list[int], seed: int = 0):
    """Tight heaps of the given sizes, and whose each row is."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(len(sizes), 12)) * 3
    owner = np.repeat(np.arange(len(sizes)), sizes)
    rows = centres[owner] + 0.2 * random.normal(size=(len(owner), 12))
    return rows.astype(np.float32), owner


def test_every_heap_is_covered_and_the_largest_comes_first():
    rows, owner = heaps([40, 8, 20, 3])
    found = choose(rows, rows[:0], 4)
    assert owner[found.rows].tolist() == [0, 2, 1, 3]
    assert found.stands_for.tolist() == [40, 20, 8, 3]


def test_a_heap_with_a_label_is_left_alone():
    rows, owner = heaps([30, 30, 30])
    labelled = rows[owner == 1][:2]
    found = choose(rows[owner != 1], labelled, 2)
    assert sorted(owner[owner != 1][found.rows].tolist()) == [0, 2]


def test_the_typical_one_of_a_heap_is_no_outlier():
    rows, _ = heaps([50])
    rows[7] += 5
    assert choose(rows, rows[:0], 1).rows[0] != 7


def test_once_a_run_exists_the_unsure_ones_are_asked_about():
    rows, owner = heaps([100, 100])
    sure = np.ones(200)
    unsure = np.r_[3, 17, 120, 150, 151, 152, 153, 154, 155, 156]
    sure[unsure] = 0.01
    found = choose(rows, rows[:0], 2, sure=sure)
    assert set(found.rows) <= set(unsure)
    assert sorted(owner[found.rows].tolist()) == [0, 1]


@pytest.mark.parametrize(("count", "copies"), [(5, 1), (9, 1), (6, 6), (3, 12)])
def test_as_many_as_are_wanted_and_none_twice(count, copies):
    """Equal pictures too: clusters that lose their members to another are filled up."""
    rows = np.repeat(heaps([1] * (9 // copies or 1))[0], copies, axis=0)
    found = choose(rows, rows[:0], count)
    wanted = min(count, len(rows))
    assert len(found.rows) == wanted == len(set(found.rows.tolist())) == len(found.stands_for)


def test_the_projection_keeps_who_is_near():
    random = np.random.default_rng(2)
    wide = np.repeat(random.normal(size=(4, 3000)), 10, axis=0) + 0.3 * random.normal(
        size=(40, 3000)
    )
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    rows = reduced(lambda part: wide[part].astype(np.float16), 40, 3000)
    assert rows.shape == (40, 256) and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    nearest = (rows @ rows.T - 2 * np.eye(40)).argmax(axis=1)
    assert (nearest // 10 == np.arange(40) // 10).all()
