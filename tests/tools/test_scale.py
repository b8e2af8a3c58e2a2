"""Growth: made-up data that `train` finds in its cache, the lines, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeladder.core.bundle import Bundle
from edgeladder.runtime.cache.inputs import open_reader
from edgeladder.runtime.pictures.dataset import open_data, split
from edgeladder.runtime.towers.fill_cache import Wanted, looked_up
from tools.bench import scale
from tools.bench.fabricated_data import fill_cache, write_data
from tools.bench.line_plot import line_plot
from tools.bench.scale import Point

MB = 1_000_000


def row(along: str, count: int, phase: str, peak_mb: float) -> scale.Row:
    sizes = {"pictures": 1_000, "classes": 10} | {along: count}
    return {
        "along": along,
        **sizes,
        "phase": phase,
        "seconds": 1.5,
        "step_ms": 20.0 if phase == "train" else None,
        "planned_bytes": 110 * MB,
        "peak_bytes": peak_mb * MB,
    }


ROWS = [
    row("classes", 1_000, "train", 104.0),
    row("classes", 10, "train", 100.0),
    row("pictures", 100, "evaluate", 90.0),
]


def test_made_up_pictures_are_found_in_their_cache(bundle_folder: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(bundle_folder, verify=False)
    data = write_data(tmp_path / "data.zip", 7, 3, 2, drawn=False)
    fill_cache(bundle, tmp_path / "cache", data, 9)
    dataset = open_data(data)
    assert dataset.classes == ["class00000", "class00001", "class00002"]
    wanted = Wanted(*split(dataset, None, 0), 0, "fp16")
    found = looked_up(bundle, dataset, tmp_path / "cache", wanted, "", most_bytes=MB)
    assert found is not None and found.reused == 9 and found.text_reused == 3
    reader = open_reader(bundle, tmp_path / "cache", found.selection, keep_bytes=0)
    embeddings = reader.text.embedding[:]
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)
    assert len(np.unique(embeddings, axis=0)) == 3
    reader.close()


def test_both_lines_begin_with_their_smallest_point():
    found = list(scale.points([100, 10], [30, 5], at_pictures=20))
    assert found == [
        Point("pictures", 10, 5),
        Point("pictures", 100, 5),
        Point("classes", 20, 5),
        Point("classes", 30, 30),
    ]


def test_growth_is_that_of_the_highest_point_over_the_first():
    assert scale.growth(ROWS, "classes", "train") == pytest.approx(0.04)
    assert scale.growth(ROWS, "pictures", "evaluate") is None
    told = scale.table(ROWS)
    assert "| 1,000 | 1,000 | train | 1.5 | 20.0 | 110.0 | 104.0 |" in told
    assert "- train, by classes: +4.0 %" in told


def test_a_plot_has_a_line_for_each_phase_with_points():
    drawn = scale.plot(ROWS)
    assert drawn.count("<polyline") == 2 and "train, by classes" in drawn


def test_a_line_plot_escapes_its_names():
    drawn = line_plot({"a < b": {1: 2.0, 10: 4.0}}, "x & y", step=1)
    assert "a &lt; b" in drawn and "x &amp; y" in drawn and drawn.count("<circle") == 2
