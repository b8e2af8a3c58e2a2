"""The benchmark of answers: areas under curves by pairs, temperatures as training fits them."""

from __future__ import annotations

import numpy as np
import pytest

from edgeladder.runtime.calibration import SUM_SPREAD, from_held_out, from_spread
from tools.bench.answers import auroc, judged, temperature_of

RANDOM = np.random.default_rng(0)


def test_an_auroc_is_the_share_of_pairs():
    known, unknown = RANDOM.integers(0, 6, 23) / 5, RANDOM.integers(0, 6, 17) / 5
    pairs = [float(a > b) + 0.5 * float(a == b) for a in known for b in unknown]
    assert auroc(known, unknown) == pytest.approx(np.mean(pairs))
    assert auroc(np.array([1.0]), np.array([0.0])) == 1.0


def test_the_temperature_is_fitted_as_training_fits_it():
    rows = {name: RANDOM.normal(size=(8, 3)) for name in ("zs_s", "ls", "hs", "ho")}
    labels = np.repeat([0, 1], 4)
    held = rows["zs_s"] + 4.0 * rows["ho"]
    expected = from_held_out(held, labels, 4.0).temperature
    assert temperature_of({**rows, "ys": labels}, 4.0) == expected
    rows["ho"] = np.full((8, 3), np.nan)
    spread = from_spread(rows["ls"] + 4.0 * rows["hs"], SUM_SPREAD).temperature
    assert temperature_of({**rows, "ys": labels}, 4.0) == spread


def test_a_certain_answer_that_is_wrong_is_wholly_off():
    error, loss = judged(np.array([[50.0, 0.0]]), np.array([1]))
    assert error == pytest.approx(1.0) and loss == pytest.approx(50.0)
