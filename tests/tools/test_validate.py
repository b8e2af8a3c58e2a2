"""Validation pictures are of the training side and in no support set; one training judges both."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import edgeladder
from edgeladder.runtime.pictures.dataset import open_data, split
from tools.bench import validate
from tools.bench.result_rows import load

BUNDLE = Path(edgeladder.__file__).parent / "_nano" / "bundle"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    for label, count in (("cat", 12), ("dog", 5)):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(count):
            pixels = draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.png")
    return tmp_path / "data"


def test_validation_pictures_are_held_out_of_every_support_set(data: Path) -> None:
    parts, whole = validate.hold_out(data, 3), open_data(data)
    train, test = split(whole, None, 0)
    held = {picture.path for picture in parts.held}
    assert held <= {picture.path for picture in train}
    counts = {name: sum(p.label == name for p in train) for name in whole.classes}
    kept = {name: sum(p.label == name for p in parts.held) for name in whole.classes}
    assert kept == {name: min(3, count // 2) for name, count in counts.items()}
    for seed in range(5):
        support, left = split(parts.dataset, 2, seed)
        assert not held & {picture.path for picture in support}
        assert {p.path for p in left} == {p.path for p in test}  # the test side is as it was


def test_one_row_for_either_part_and_nothing_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "chosen.csv"
    given = ["validate", "--bundle", str(BUNDLE), "--data", str(data), "--out", str(out)]
    given += ["--cache", str(tmp_path / "cache"), "--shots", "2", "--seeds", "1"]
    given += ["--ladder", "short=,train.steps=1,head.kind=none,head.weight=null,head.full_at=null"]
    monkeypatch.setattr(sys, "argv", [*given, "--against", "short"])
    validate.main()
    rows = load(out)
    assert [row["part"] for row in rows] == ["validation", "test"]
    assert all(0 <= float(str(row["accuracy"])) <= 1 for row in rows)
    assert "## validation" in capsys.readouterr().out
    monkeypatch.setattr(validate, "train_ladder", lambda *_: pytest.fail("trained again"))
    validate.main()
    assert load(out) == rows
