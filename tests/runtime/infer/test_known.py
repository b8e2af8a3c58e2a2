"""Known pictures: scores and thresholds against plain numpy, and what is kept of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from edgeladder.core.adapter_record import KnownRecord
from edgeladder.core.errors import IntegrityError
from edgeladder.runtime.known import (
    NEIGHBOURS,
    ROWS,
    Known,
    choose_threshold,
    fit_known,
    left_out_scores,
    student_quantile,
)

RANDOM = np.random.default_rng(0)


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def window(count: int, projected: bool) -> SimpleNamespace:
    taps = RANDOM.normal(size=(2, 3, count, 4)).astype(np.float32)
    extra = {"before": RANDOM.normal(size=(count, 6)).astype(np.float32)} if projected else {}
    return SimpleNamespace(
        labels=np.zeros(count, np.int64),
        image_embedding=RANDOM.normal(size=(count, 5)).astype(np.float32),
        image_extra=extra,
        image_taps=lambda start, stop: [taps[:, :, start:stop]],
        taps=taps,
    )


@pytest.mark.parametrize("projected", [True, False])
def test_a_score_is_the_mean_cosine_to_the_nearest(projected):
    inputs = [window(7, projected), window(4, projected)]
    record, rows = fit_known(inputs, chunk=3)
    assert rows.dtype == np.float16 and rows.shape == (11, 6 if projected else 17)

    def seen(part):
        if projected:
            return [part.image_extra["before"]]
        flat = part.taps[-1].transpose(1, 0, 2).reshape(part.taps.shape[2], -1)
        return [flat, part.image_embedding]

    new = window(5, projected)
    parts = [np.concatenate(rows) for rows in zip(*(seen(part) for part in inputs), strict=True)]
    features = [np.zeros((5, 1)), *seen(new)]
    if projected:
        features.append(new.image_embedding)
    found = Known.of(record, {ROWS: rows}).scores(features)
    for row in range(5):
        near = [
            np.mean(
                [cosine(mine[row], kept[k]) for mine, kept in zip(seen(new), parts, strict=True)]
            )
            for k in range(11)
        ]
        assert found[row] == pytest.approx(np.mean(sorted(near)[-3:]), abs=2e-3)


def test_held_out_scores_of_blocks_are_those_of_all_at_once():
    rows = RANDOM.normal(size=(300, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    likeness = rows @ rows.T
    likeness[np.diag_indices_from(likeness)] = -np.inf
    expected = np.sort(likeness, axis=1)[:, -NEIGHBOURS:].mean(axis=1)
    seen: list[int] = []

    def read(stored: np.ndarray) -> np.ndarray:
        seen.append(len(stored))
        return stored

    np.testing.assert_allclose(left_out_scores(rows, NEIGHBOURS, read), expected, rtol=1e-5)
    assert max(seen) <= 128


def test_held_out_scores_leave_the_picture_itself_out():
    rows = RANDOM.normal(size=(6, 4))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = left_out_scores(rows, NEIGHBOURS)
    for row in range(6):
        others = sorted(float(rows[row] @ rows[k]) for k in range(6) if k != row)
        assert found[row] == pytest.approx(np.mean(others[-3:]))
    assert left_out_scores(rows[:2], NEIGHBOURS) == pytest.approx([rows[0] @ rows[1]] * 2)
    assert not len(left_out_scores(rows[:1], NEIGHBOURS))


def test_student_quantiles_are_those_of_the_tables():
    table = {1: 6.314, 2: 2.920, 4: 2.132, 5: 2.015, 9: 1.833, 20: 1.725, 59: 1.671, 1000: 1.646}
    for freedom, expected in table.items():
        assert student_quantile(freedom) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("count", [5, 20, 40, 80, 400])
def test_about_one_in_twenty_known_pictures_is_refused(count):
    """Scores of one distribution: new ones lie below the threshold at most so often on the mean."""
    generator = np.random.default_rng(count)
    shares = []
    for _ in range(200):
        threshold = choose_threshold(generator.normal(0.5, 0.05, count))
        shares.append((generator.normal(0.5, 0.05, 500) < threshold).mean())
    assert 0.02 < np.mean(shares) < 0.06


def test_nothing_is_refused_where_nothing_is_known_of_the_scores():
    assert choose_threshold(np.zeros(0)) == choose_threshold(np.array([0.9])) == -1.0
    assert choose_threshold(np.array([0.9, -0.9])) == -1.0  # not below what a cosine can be
    known = Known(KnownRecord(threshold=0.25), np.eye(3, dtype=np.float32))
    assert known.refuses(0.2) and not known.refuses(0.25)


def test_an_adapter_without_its_rows_is_refused():
    with pytest.raises(IntegrityError, match="lacks the pictures"):
        Known.of(KnownRecord(threshold=0.1), {})
