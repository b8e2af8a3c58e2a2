"""The report: valid, self-contained, and complete even where the run is not."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import edgeladder
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.memory_record import MemoryAction
from edgeladder.core.records import to_json
from edgeladder.report import write_report as write
from edgeladder.report.charts import line_chart, nice_ticks
from edgeladder.report.record import EVENT_KINDS

_VOID = {"meta", "br"}
NAMES = ["hat & <scarf>", "dress", "shoes"]


class Page(HTMLParser):
    """Checks that tags nest and collects text, attributes and table cells."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes <{self.open[-1:]}>"
        self.open.pop()

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def a_run(folder: Path, classes: list[str] | None = None) -> Path:
    names = classes or NAMES
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"profile": {"name": "default"}}))
    phases = {"train": {"planned_peak_bytes": 240_000_000}}
    (folder / "plan.json").write_text(json.dumps({"phases": phases, "budget_bytes": 400_000_000}))
    (folder / "environment.json").write_text(json.dumps({"architecture": "aarch64"}))
    lines = [
        {"time": 1e9 + i, "kind": "step", "step": i + 1, "loss": 2.0 / (i + 1)} for i in range(50)
    ]
    lines.append(
        {
            "time": 1e9,
            "kind": "phase",
            "phase": "train",
            "measured_peak_bytes": 221_000_000,
            "memory": {
                "began": 1e9,
                "span_seconds": 0.1,
                "used_bytes": [10**8, 321 * 10**6, 2 * 10**8],
            },
        }
    )
    action = MemoryAction(
        kind="memory", phase="train", action="halve", reason="80 % of the budget",
        used_bytes=321_000_000, step=50,
    )  # fmt: skip
    lines.append({"time": 1e9, **to_json(action)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + '{"time": 1, "kind": "st')
    count = len(names)
    evaluation = {
        "accuracy": 0.8,
        "zero_shot_accuracy": 0.55,
        "count": 10 * count,
        "split": "test",
        "classes": names,
        "per_class": {n: {"count": 10, "accuracy": 0.8, "zero_shot_accuracy": 0.55} for n in names},
        "confusion": [
            [8 if i == j else (2 if j == (i + 1) % count else 0) for j in range(count)]
            for i in range(count)
        ],
    }
    bins = [
        {"low": k / 15, "high": (k + 1) / 15, "count": 0, "confidence": None, "accuracy": None}
        for k in range(15)
    ]
    bins[9] |= {"count": 10, "confidence": 0.62, "accuracy": 0.7}
    bins[14] |= {"count": 20, "confidence": 0.97, "accuracy": 0.85}
    evaluation["calibration"] = {
        "expected_error": 0.1067,
        "negative_log_likelihood": 0.512,
        "bins": bins,
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def test_probabilities_are_drawn_and_told(tmp_path):
    """A dot each range that has pictures, where confidence and accuracy say; all in words."""
    run = a_run(tmp_path / "run")
    text = write(run).read_text(encoding="utf-8")
    page = Page(text)
    dots = re.findall(r'<circle class="measured" cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', text)
    assert len(dots) == 2
    for (x, y, _), (sure, right) in zip(dots, ((0.62, 0.7), (0.97, 0.85)), strict=True):
        assert float(x) == pytest.approx(72 + sure * (640 - 72 - 12), abs=0.1)
        assert float(y) == pytest.approx(272 - right * (272 - 48), abs=0.1)
    assert float(dots[1][2]) > float(dots[0][2])  # the more pictures, the larger
    for words in (
        "error 10.7 %",
        "log-likelihood 0.512",
        "60.0 % to 66.7 %",
        "62.0 %",
        "39.7 to 89.2",
    ):
        assert words in page.text, words
    labels = [value for name, value in page.attributes if name == "aria-label"]
    assert any("calibration error 10.7 %" in label for label in labels)
    old = json.loads((run / "evaluation.json").read_text())
    del old["calibration"]
    (run / "evaluation.json").write_text(json.dumps(old))
    assert "probabilities were not judged" in Page(write(run).read_text(encoding="utf-8")).text


def test_accuracies_carry_their_interval(tmp_path):
    run = a_run(tmp_path / "run")
    text = Page(write(run).read_text(encoding="utf-8")).text
    assert "tuned (62.7 to 90.5)" in text  # 24 of 30
    assert "49.0 to 94.3" in text  # 8 of 10


def test_a_report_is_well_formed_and_shows_the_run(tmp_path):
    run = a_run(tmp_path / "run")
    path = write(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    for words in (
        "80.0 %",
        "55.0 %",
        "+25.0",
        "240 MB",
        "221 MB",
        "budget 400 MB",
        "halve",
        "50 steps",
        "aarch64",
        "hat & <scarf>",
        "taken for",
    ):
        assert words in page.text, words
    assert page.tags.count("svg") == 4
    assert [value for name, value in page.attributes if (value or "").startswith("bars")] == [
        "bars marked", "bars"
    ]  # fmt: skip
    assert ("name", "viewport") in page.attributes


def test_a_report_shows_the_evidence_for_the_budget(tmp_path):
    """Peaks of every phase, which limit was live and read back, and all that the watch did."""
    run = a_run(tmp_path / "run")
    memory = {
        "budget_bytes": 192_000_000,
        "enforcement": "cgroup2",
        "phases": {
            "precompute": {"planned_peak_bytes": 151_000_000, "measured_peak_bytes": 143_000_000}
        },
    }
    (run / "result.json").write_text(json.dumps({"memory": memory}))
    records = [
        {"kind": "limit", "phase": "train", "layer": "cgroup2", "confirmed": 170_000_000},
        {"kind": "memory", "phase": "train", "action": "halve", "reason": "80 % of the budget"},
        {
            "kind": "restart",
            "phase": "train",
            "cause": "killed by the cgroup2 limit",
            "last_step": 8,
        },
    ]
    lines = "".join(json.dumps({"time": 1e9, **record}) + "\n" for record in records)
    (run / "metrics.jsonl").write_text(lines)
    page = Page(write(run).read_text(encoding="utf-8"))
    for words in ("151 MB", "143 MB", "enforcement: cgroup2", "170 MB", "80 % of the budget"):
        assert words in page.text, words
    assert "killed by the cgroup2 limit" in page.text


def test_the_report_knows_the_events_that_jobs_record_and_no_others():
    jobs = Path(edgeladder.__file__).parent / "jobs"
    written = "".join(path.read_text(encoding="utf-8") for path in jobs.glob("*.py"))
    emitted = set(re.findall(r'"kind": "(\w+)"', written)) | set(
        re.findall(r'MemoryAction\(\s*kind="(\w+)"', written)
    )
    # shown in other ways, or at all
    elsewhere = {"start", "step", "checkpoint", "phase", "result", "cached"}
    assert elsewhere < emitted
    assert set(EVENT_KINDS) == emitted - elsewhere


def test_a_limit_that_works_is_one_sentence(tmp_path):
    """What this machine lacks beside it is folded away: nothing has to be done about it."""
    run = a_run(tmp_path / "run")
    record = {
        "kind": "limit", "layer": "cgroup1", "limit_bytes": 170_000_000, "confirmed": 170_000_000,
        "notes": ["cgroup2: no controller here"],
    }  # fmt: skip
    lines = [json.dumps({"time": 1e9, "phase": name, **record}) for name in ("precompute", "train")]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    text = write(run).read_text(encoding="utf-8")
    page = Page(text)
    assert "cgroup1 held precompute, train at 170 MB, read back from the kernel" in page.text
    assert "nothing had to be done" in page.text
    folded = "".join(re.findall(r"<details>.*?</details>", text, re.DOTALL))
    assert "no controller here" in folded
    assert text.count("no controller here") == 1


def test_labels_can_be_read_on_a_phone_and_are_not_cut(tmp_path):
    """At least 11 pixels high on a screen of 360, and inside the drawing."""
    names = [f"a very long class name {i}" for i in range(6)]
    text = write(a_run(tmp_path / "run", names)).read_text(encoding="utf-8")
    phone = re.search(r"max-width:560px\)\{(.*?)\}\}", text, re.DOTALL)[1]
    least = int(re.search(r"svg\.wide\{min-width:(\d+)px", phone)[1])
    widest = int(re.search(r"svg\.wide text[^{]*\{font-size:(\d+)px", phone)[1])
    size = int(re.search(r"svg text[^{]*\{font-size:(\d+)px", phone)[1])
    assert widest * least / 640 >= 13 and size * (360 - 46) / 640 >= 11
    drawings = re.findall(r'<div class="scroll"><svg( class="wide")?(.*?)</svg>', text, re.DOTALL)
    assert len(drawings) == text.count("<svg") > 3
    for wide, drawing in drawings:
        letter = 0.53 * (widest if wide else size)
        for x, words in re.findall(r'<text x="([\d.]+)"[^>]*="end"[^>]*>([^<]*)<', drawing):
            assert len(words) * letter <= float(x), words
    for name in names:
        assert f'<span class="name">{name}</span>' in text  # whole: bars are HTML, and it wraps


def test_a_report_needs_nothing_from_elsewhere(tmp_path):
    text = write(a_run(tmp_path / "run"), tmp_path / "out.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<img|<iframe", text)
    page = Page(text)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name[:2] == "on"]
    assert "prefers-color-scheme:dark" in text


def test_many_classes_are_told_by_their_commonest_mistakes(tmp_path):
    names = [f"class {i}" for i in range(60)]
    page = Page(write(a_run(tmp_path / "run", names)).read_text(encoding="utf-8"))
    assert "60 classes: the 20 commonest mistakes" in page.text
    assert "The 40 weakest of 60 classes" in page.text
    assert page.tags.count("svg") == 3


@pytest.mark.parametrize(
    "lost", ["plan.json", "environment.json", "metrics.jsonl", "evaluation.json", "config.yaml"]
)
def test_a_run_that_lacks_a_file_still_has_a_report(tmp_path, lost):
    run = a_run(tmp_path / "run")
    (run / lost).unlink()
    Page(write(run).read_text(encoding="utf-8"))
    (run / lost).write_text('{"half')
    if lost != "config.yaml":
        Page(write(run).read_text(encoding="utf-8"))


def test_resumed_steps_are_counted_once(tmp_path):
    run = a_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as stream:
        stream.write("\n")
        for step in (49, 50, 51):
            stream.write(json.dumps({"time": 1, "kind": "step", "step": step, "loss": 0.5}) + "\n")
    assert "51 steps" in Page(write(run).read_text(encoding="utf-8")).text


def test_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run here") as caught:
        write(tmp_path)
    assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_curve_survives_numbers_that_are_none():
    points = [(i, float("nan") if i == 3 else 1.0) for i in range(5000)]
    chart = line_chart(points, x_label="step", label="loss")
    assert "nan" not in chart and "inf" not in chart
    assert len(chart) < 60_000
    assert "fewer than two" in line_chart([(1, float("inf"))], x_label="step", label="loss")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0), (-3, 17), (1e-6, 2e-6), (0, 1e9)])
def test_ticks_are_few_and_inside(low, high):
    ticks = nice_ticks(low, high)
    top = high if high > low else low + 1
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= t <= top * (1 + 1e-9) for t in ticks)


def leaves(values, path=()):
    """Every path to a value of a tree of JSON, and its keys."""
    if isinstance(values, (dict, list)):
        pairs = values.items() if isinstance(values, dict) else enumerate(values)
        for key, value in pairs:
            yield from leaves(value, (*path, key))
    yield path


def replaced(values, path, by):
    if not path:
        return by
    copy = dict(values) if isinstance(values, dict) else list(values)
    copy[path[0]] = replaced(values[path[0]], path[1:], by)
    return copy


@pytest.mark.parametrize(
    "name", ["result.json", "plan.json", "evaluation.json", "environment.json"]
)
def test_no_value_of_a_run_becomes_markup_or_a_crash(tmp_path: Path, name: str) -> None:
    """A fleet writes pages of what boxes sent: each value in turn is a script, or absurd."""
    run = a_run(tmp_path / "run", NAMES[:2])
    accuracy = {"zero_shot": 0.5, "tuned": 0.75, "split": "test"}
    memory = {"budget_bytes": 10**9, "enforcement": "rlimit", "phases": {"train": {}}}
    result = {"steps": 3, "engine": "stock", "accuracy": accuracy, "memory": memory}
    (run / "result.json").write_text(json.dumps(result))
    values = json.loads((run / name).read_text())
    script = "<script>alert(1)</script>\x1b[2J\u202e"
    for path in leaves(values):
        for by in (script, {script: script}, [script], 10**400, -1, None):
            (run / name).write_text(json.dumps(replaced(values, path, by)))
            try:
                text = write(run, tmp_path / "out.html").read_text(encoding="utf-8")
            except IntegrityError:
                continue
            assert "<script" not in text and "\x1b" not in text and "\u202e" not in text, path
