"""What a report adds: thumbnails, memory over time, what to do next."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from edgeladder.core.records import to_json
from edgeladder.core.request import TrainRequest
from edgeladder.report import write_report
from edgeladder.report.page import _clock
from edgeladder.runtime.notable import MOST, Notable

CLASSES = ["cat", "dog <b>"]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_notable_pictures_are_those_a_full_sort_finds():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 5, 300)
    tuned, zero = (generator.normal(size=(300, 5)) for _ in range(2))
    notable = Notable([str(k) for k in range(5)])
    for start in range(0, 300, 37):
        part = slice(start, start + 37)
        notable.add(labels[part], tuned[part], zero[part])
    found = notable.to_json()
    shares, before = softmax(tuned), softmax(zero)
    rows, named = np.arange(300), tuned.argmax(axis=1)
    wrong = [row for row in np.argsort(-shares.max(axis=1)) if named[row] != labels[row]]
    assert [item["position"] for item in found["wrong"]] == wrong[:MOST]
    gain = shares[rows, labels] - before[rows, labels]
    mended = (named == labels) & (zero.argmax(axis=1) != labels)
    improved = [row for row in np.argsort(-gain) if mended[row]]
    assert [item["position"] for item in found["improved"]] == improved[:MOST]
    first = found["wrong"][0]
    assert first["named"] == str(named[wrong[0]]) and first["label"] == str(labels[wrong[0]])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run on two classes with a test split of four pictures, one of them huge."""
    for split in ("train", "test"):
        for number, name in enumerate(CLASSES):
            folder = tmp_path / "my pictures" / split / name
            folder.mkdir(parents=True)
            for k in range(2):
                side = 2500 if (split, k, number) == ("test", 1, 1) else 300
                Image.new("RGB", (side, 200 * side // 100), (90 * k, 200, 9)).save(
                    folder / f"{k}.png"
                )
    folder = tmp_path / "the run"
    folder.mkdir()
    request = TrainRequest(
        bundle="nano", data=str(tmp_path / "my pictures"), budget_bytes=160_000_000, seed=5, shots=2
    )
    (folder / "config.yaml").write_text(yaml.safe_dump({"request": to_json(request)}))
    (folder / "result.json").write_text(json.dumps({"skipped_inputs": []}))

    def item(position: int, label: str, named: str) -> dict[str, object]:
        told = {"position": position, "label": label, "named": named, "zero_shot": CLASSES[0]}
        return {**told, "probability": 0.876}

    told = {
        "accuracy": 0.5, "zero_shot_accuracy": 0.75, "count": 4, "split": "test",
        "pictures": {
            "wrong": [item(0, "cat", CLASSES[1])],
            "improved": [item(2, CLASSES[1], CLASSES[1]), item(3, CLASSES[1], CLASSES[1])],
        },
    }  # fmt: skip
    (folder / "evaluation.json").write_text(json.dumps(told))
    return folder


def test_thumbnails_are_small_and_embedded_and_can_be_left_out(run):
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count('src="data:image/jpeg;base64,') == 2
    assert page.count("not shown") == 1, "12.5 megapixels of PNG are not decoded for a thumbnail"
    assert "88&nbsp;%" in page and "dog &lt;b&gt;" in page and "dog <b>" not in page
    assert len(page) < 40_000
    without = write_report(run, pictures=False).read_text(encoding="utf-8")
    assert "data:image" not in without and "<h2>Pictures</h2>" not in without


def test_pictures_that_are_gone_or_others_are_not_shown(run):
    pictures = run.parent / "my pictures"
    (pictures / "test" / "cat" / "2.png").write_bytes(b"a new one")
    assert "not on this machine any more" in write_report(run).read_text(encoding="utf-8")
    pictures.rename(run.parent / "elsewhere")
    assert "not on this machine any more" in write_report(run).read_text(encoding="utf-8")


def test_the_next_commands_are_exact(run):
    page = write_report(run).read_text(encoding="utf-8")
    again = shlex.join(
        ["edgeladder", "train", "--bundle", "nano", "--data", str(run.parent / "my pictures"),
         "--budget", "160MB", "--shots", "2", "--seed", "5"]
    )  # fmt: skip
    for line in (again, f"edgeladder predict --run '{run}' PICTURES"):
        assert line.replace("'", "&#x27;") in page
    assert "worse than names alone" in page and "Judged on 4 pictures" in page
    (run / "result.json").unlink()
    page = write_report(run).read_text(encoding="utf-8")
    assert f"edgeladder train --resume &#x27;{run}&#x27;" in page
    assert "edgeladder predict" not in page


def test_memory_over_time_has_the_budget_and_the_watchdogs_actions(run):
    memory = {"began": 100.0, "span_seconds": 0.5, "used_bytes": [50e6, 130e6, 90e6]}
    action = {"kind": "memory", "phase": "train", "action": "trim", "reason": "70 % & more"}
    lines = [
        {"time": 102, "kind": "phase", "phase": "train", "memory": memory},
        {"time": 100.5, **action, "used_bytes": 130e6, "step": 3},
        {"time": 101, "kind": "phase", "phase": "evaluate", "memory": {"began": "never"}},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "plan.json").write_text(json.dumps({"budget_bytes": 160_000_000}))
    page = write_report(run).read_text(encoding="utf-8")
    chart = page[page.index("Memory over time") :].split("</section>")[0]
    assert chart.count("<circle") == 1 and "trim: 70 % &amp; more, 130 MB" in chart
    assert "budget 160 MB" in chart and chart.count("<polyline") == 1
    assert "dots: what the watch did" in chart


@pytest.mark.parametrize("stamp", [10**18, -(10**18), 1e308, float("nan"), float("inf")])
def test_a_moment_beyond_the_calendar_is_shown_as_it_stands(stamp: float) -> None:
    """Found by fuzzing: a damaged line of metrics.jsonl ended `report` with exit code 1."""
    assert _clock(stamp) == str(stamp)


def test_a_moment_is_shown_in_utc() -> None:
    assert _clock(0) == "1970-01-01 00:00:00" and _clock(None) == ""


def test_pictures_without_a_label_have_a_section_where_there_are_any(run):
    told = {
        "pictures": 80, "used": 47, "strange": 3, "classes": {"dog <b>": 40, "cat": 7},
        "accuracy_without": 0.5, "accuracy_with": 0.625,
    }  # fmt: skip

    def page(**values):
        result = (
            json.loads((run / "result.json").read_text()) if (run / "result.json").is_file() else {}
        )
        (run / "result.json").write_text(json.dumps({**result, **values}))
        return write_report(run).read_text()

    text = page(unlabelled=told)
    assert "Pictures without a label" in text and "47 of 80 taught, 3 are like none" in text
    assert "50.0 % without them, 62.5 % with them" in text and "dog &lt;b&gt;" in text
    assert "too few" in page(unlabelled={"pictures": 3, "reason": "3 pictures are too few"})
    for other in (None, "many", {"pictures": "x"}):
        assert "Pictures without a label" not in page(unlabelled=other)
