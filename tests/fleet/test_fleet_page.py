"""The fleet's page: accuracies with their number of pictures and interval, from what was pulled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeladder.core.intervals import wilson
from edgeladder.fleet import console, fleet_page
from edgeladder.fleet.fleet_evaluation import _mean
from edgeladder.fleet.outcomes import HostResult
from edgeladder.fleet.pulled import PulledResult, PullRecord


def pulled(out: Path, host: str, accuracy: dict[str, object] | float, **more: object) -> Path:
    folder = out / "job" / "hosts" / host
    folder.mkdir(parents=True)
    PullRecord("done", 0).write(folder)
    (folder / "result.json").write_text(json.dumps({"accuracy": accuracy, **more}))
    return folder


def test_an_accuracy_comes_with_its_pictures_and_its_interval(tmp_path):
    pulled(tmp_path, "barn", {"zero_shot": 0.5, "tuned": 0.75, "count": 12, "split": "test"})
    pulled(tmp_path, "yard", {"zero_shot": 0.5, "tuned": 1.0})  # an older box says no count
    page, rows = fleet_page.write(tmp_path, "job")
    barn, yard = rows
    assert barn.count == 12
    assert barn.interval == pytest.approx(wilson(9, 12))
    assert (yard.count, yard.interval) == (None, None)
    text = page.read_text()
    assert "<td>75.0 %</td><td>46.8 to 91.1</td><td>12</td>" in text
    assert "<td>100.0 %</td><td>–</td><td>–</td>" in text
    assert "<b>12</b><span>test pictures</span>" in text


def test_a_count_that_cannot_be_is_none(tmp_path):
    for number, count in enumerate((-3, "12", 1e300, True)):
        folder = pulled(tmp_path, f"box{number}", {"tuned": 0.5, "count": count})
        assert PulledResult.read(folder).test_count is None


def test_an_evaluation_says_an_interval_for_each_box_and_all_together(tmp_path):
    found = [
        PulledResult.read(pulled(tmp_path, "barn", 0.75, count=12)),
        PulledResult.read(pulled(tmp_path, "yard", 0.5, count=4)),
    ]
    assert _mean(found) == {"accuracy": 11 / 16, "interval": wilson(11, 16), "count": 16}
    assert _mean([]) == {}
    column = console.interval("interval")
    assert column(HostResult("barn", "done", {"interval": wilson(9, 12)})) == "46.8 to 91.1"
    assert column(HostResult("barn", "failed")) is None


def test_pictures_without_a_label_that_taught_are_told(tmp_path):
    taught = {"pictures": 80, "used": 47, "strange": 3, "classes": {"a": 47}}
    pulled(tmp_path, "barn", {"tuned": 0.75, "count": 12}, unlabelled=taught)
    pulled(tmp_path, "shed", {"tuned": 0.75, "count": 12}, unlabelled={"used": "many"})
    pulled(tmp_path, "yard", {"tuned": 0.5, "count": 4}, unlabelled=None)
    page, rows = fleet_page.write(tmp_path, "job")
    assert [row.unlabelled for row in rows] == [47, None, None]
    assert "<th>unlabelled, taught</th>" in page.read_text()
    assert "<td>12</td><td>47</td>" in page.read_text()
