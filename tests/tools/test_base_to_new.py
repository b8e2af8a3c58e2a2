"""Base to new: what is trained hears of half the classes, and both halves are judged by names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeladder
from edgeladder.core.bundle import Bundle
from edgeladder.core.yaml_config import override
from tools.bench import base_to_new, result_rows
from tools.bench.base_to_new import Halves, Judge, harmonic
from tools.bench.task import Activations, load_pool


def test_a_task_of_both_halves(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for label in ("cat", "cow", "dog", "gnu", "hen"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(8):
            pixels = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.png")
    bundle = Bundle.open(Path(edgeladder.__file__).parent / "_nano" / "bundle")
    halves = Halves.of(load_pool(bundle, tmp_path / "data", tmp_path / "cache", shots=2, seeds=1))
    assert halves.base.selection.classes == ["cat", "cow", "dog"]  # one more where they are odd
    assert halves.new.selection.classes == ["gnu", "hen"]
    task = halves.base.task(2, 0)
    assert task.classes == 3 and sorted(task.support.labels) == [0, 0, 1, 1, 2, 2]
    whole = halves.whole.task(2, 0)
    np.testing.assert_array_equal(task.support.embedding, whole.support.embedding[:6])
    profile = override(bundle.manifest.profile, ["train.steps=2"])
    ladders = {"default": (bundle, profile)}
    rows = list(base_to_new.run_task(halves, task, ladders, set(), validation=False))
    assert [row["method"] for row in rows] == [
        *("zero-shot", "default: ladder alone", "default", "default: head added")
    ]
    assert rows[1]["new"] == rows[2]["new"]  # the head says nothing of new names
    assert rows[1]["new_all"] == rows[2]["new_all"]
    done = {tuple(str(row[key]) for key in base_to_new._KEY) for row in rows}
    assert not list(base_to_new.run_task(halves, task, ladders, done, validation=False))
    path = tmp_path / "results.csv"
    result_rows.save(path, rows, base_to_new.FIELDS)
    assert base_to_new.table(result_rows.load(path)) == base_to_new.table(rows)


def test_each_half_is_judged_among_its_own_names_and_among_all() -> None:
    def pictures(labels: list[int]) -> Activations:
        return Activations(np.zeros((len(labels), 1)), np.array(labels), [], {})

    judge = Judge((pictures([0, 1, 1, 1]), pictures([2, 3])), 2)
    base = np.array([[5, 0, 9, 0], [0, 5, 0, 0], [0, 5, 0, 9], [5, 0, 0, 0]])
    new = np.array([[9, 0, 5, 0], [0, 0, 5, 0]])
    found = judge.shares((base, new), (base, new))
    assert (found["base"], found["new"]) == (0.75, 0.5)
    assert (found["base_all"], found["new_all"]) == (0.25, 0.0)
    assert found["harmonic"] == pytest.approx(0.6) == harmonic(0.75, 0.5)
    assert harmonic(0.0, 0.5) == 0
