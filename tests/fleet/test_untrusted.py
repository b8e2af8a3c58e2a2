"""Boxes that lie: whatever one answers is its own failure, in time, and steers nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edgeladder.core.printable import printable
from edgeladder.fleet import console, pull, remote_jobs, transport
from edgeladder.fleet.box.records import (
    HaveAnswer,
    InstallTask,
    JobState,
    OutputsAnswer,
    ProbeAnswer,
    ProbeRequest,
    StatusAnswer,
    from_json,
    to_json,
)
from edgeladder.fleet.host_pool import HostPool, run
from edgeladder.fleet.inventory import Host
from edgeladder.fleet.outcomes import FleetOutcome, HostError, HostResult
from edgeladder.fleet.pulled import PulledResult
from edgeladder.fleet.push import Tree, push
from edgeladder.fleet.transport import Box

STEER = "\x1b[2J\u202e\x9b"
JOB = to_json(JobState("done", 0, 1))


class Stream:
    """What a box's channel gives: blocks, or (seconds, block)."""

    def __init__(self, blocks: Any):
        self.blocks = iter(blocks)

    async def read(self, n: int) -> bytes:
        block = next(self.blocks, b"")
        if isinstance(block, tuple):
            await asyncio.sleep(block[0])
            block = block[1]
        return bytes(block)


class Process:
    exit_status = 0

    def __init__(self, blocks: Any):
        self.stdout, self.stderr, self.stdin = Stream(blocks), Stream([]), self

    def write(self, block: bytes) -> None: ...

    async def drain(self) -> None: ...

    def write_eof(self) -> None: ...

    def close(self) -> None: ...


class Connection:
    """Answers each call with the next of some blocks."""

    def __init__(self, *answers: Any):
        self.answers = iter(answers)

    async def create_process(self, *_: Any, **__: Any) -> Process:
        return Process(next(self.answers))


class Boxes:
    """A dialer whose boxes answer by their names."""

    keep = False

    def __init__(self, answers: dict[str, list[Any]], timeout: float = 5.0):
        self.answers, self.timeout = answers, timeout

    @contextlib.asynccontextmanager
    async def connect(self, host: Host) -> AsyncIterator[Box]:
        yield Box(host, Connection(*self.answers[host.name]), self.timeout)

    async def close(self) -> None: ...


def pool(answers: dict[str, list[Any]], **more: Any) -> HostPool:
    hosts = [Host(name, f"{name}.example") for name in answers]
    return HostPool(Boxes(answers, **more), hosts, tries=1)


def line(values: Any) -> list[bytes]:
    return [json.dumps(values).encode() + b"\n"]


ANSWERS: dict[str, Any] = {
    "missing": {"is": "OutputsAnswer", "job": JOB, "files": {}},
    "string": {"is": "OutputsAnswer", "job": JOB, "files": {}, "kept": "all"},
    "number": {"is": "OutputsAnswer", "job": JOB, "files": [], "kept": []},
    "digits": {
        "is": "OutputsAnswer", "job": {"state": "done", "attempts": 10**400},
        "files": {}, "kept": [],
    },
    "state": {"is": "OutputsAnswer", "job": {"state": "asleep"}, "files": {}, "kept": []},
    "size": {
        "is": "OutputsAnswer", "job": JOB, "kept": [],
        "files": {"result.json": {"size": -(10**30), "sha256": "0"}},
    },
    "list": [1],
    "null": None,
}  # fmt: skip


def test_one_hosts_answer_never_ends_a_pull(tmp_path: Path) -> None:
    good = {"is": "OutputsAnswer", "job": JOB, "files": {}, "kept": [STEER, "run/adapter.json"]}
    answers = {name: [line(values)] for name, values in ANSWERS.items()}
    answers |= {
        "deep": [[b"[" * 100_000 + b"\n"]],
        "bytes": [[b"\xff\xfe\n"]],
        "nothing": [[]],
        "good": [line(good)],
    }
    outcome = run(pool(answers).each("pull", lambda box: pull.pull(box, "j", tmp_path)))
    assert outcome.names("done") == ["good"]
    errors = {result.host: result.error for result in outcome.results if result.error}
    assert errors.keys() == answers.keys() - {"good"}
    assert all(error["message"] and error["kind"] for error in errors.values())
    kept = {result.host: result.facts.get("kept_there") for result in outcome.results}
    assert kept["good"] == ["run/adapter.json"], "a box names no other file"


@pytest.mark.parametrize(
    "error", [KeyError("x"), TypeError("x"), RecursionError("x"), OverflowError("x")]
)
def test_any_exception_is_one_hosts(error: Exception) -> None:
    async def work(box: Box) -> HostResult:
        if box.host.name == "bad":
            raise error
        return HostResult(box.host.name, "done")

    outcome = run(pool({"bad": [], "good": []}).each("doctor", work))
    assert outcome.names("done") == ["good"] and outcome.failed == ["bad"]
    assert type(error).__name__ in str((outcome.results[0].error or {})["message"])


def test_a_drip_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte just before each silence would be over kept a call open for ever."""
    monkeypatch.setattr(transport, "_SLOWEST_BYTES_PER_SECOND", 1e9)

    def drip() -> Any:
        while True:
            yield (0.03, b" ")

    async def ask(box: Box) -> HostResult:
        await box.call(ProbeRequest("p"), ProbeAnswer)
        return HostResult(box.host.name, "done")

    outcome = run(pool({"slow": [drip()]}, timeout=0.05).each("doctor", ask))
    error = outcome.results[0].error or {}
    assert error["kind"] == "timeout"


def test_an_answer_has_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ANSWER_LIMIT_BYTES", 1000)

    async def ask(box: Box) -> HostResult:
        await box.call(ProbeRequest("p"), ProbeAnswer)
        return HostResult(box.host.name, "done")

    def endless() -> Any:
        while True:
            yield b"x" * 100

    outcome = run(pool({"long": [endless()]}).each("doctor", ask))
    assert "too long" in str((outcome.results[0].error or {})["message"])


@pytest.mark.parametrize("offset", [-1, 17])
def test_a_box_holds_no_more_of_a_file_than_there_is(tmp_path: Path, offset: int) -> None:
    (tmp_path / "f").write_bytes(bytes(16))
    tree = Tree("bundle", "0" * 64, {"f": "a" * 64}, {"a" * 64: (tmp_path / "f", 16)})
    have = to_json(HaveAnswer(False, {"a" * 64: offset}, (), 1 << 40))
    outcome = run(pool({"liar": [line(have)]}).each("push", lambda box: push(box, tree)))
    assert "more of a file than there is" in str((outcome.results[0].error or {})["message"])


@pytest.mark.parametrize(
    "values",
    [
        {"job": JOB, "offset": 10**400},
        {"job": JOB, "offset": -(2**63)},
        {"job": {"state": "done", "started": float("nan")}},
        {"job": {"state": "done", "started": float("inf")}},
    ],
)
def test_numbers_of_answers_can_be(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no number that can be"):
        from_json(StatusAnswer, values)


def test_a_metrics_file_fills_no_memory() -> None:
    latest: dict[str, Any] = {}
    lines = [json.dumps({f"k{n}": "x" * 10_000 for n in range(1000)}), "[" * 100_000, "5", "NaN"]
    lines.append(json.dumps({"step": 10**400, "loss": float("nan"), "kind": "step"}))
    for text in lines:
        remote_jobs._take_metrics(latest, text)
    assert len(latest) <= 64 and max(map(len, latest.values())) <= 200


def test_a_result_of_any_kind_has_numbers_or_none(tmp_path: Path) -> None:
    for text in (
        "", "[", "[" * 100_000, "5", "null", '{"accuracy": 5}',
        json.dumps({"accuracy": {"tuned": 1e308, "zero_shot": -1}, "count": 10**400}),
        json.dumps({"memory": {"phases": [1]}, "error": {"message": "x" * 9999}}),
    ):  # fmt: skip
        (tmp_path / "result.json").write_text(text)
        found = PulledResult.read(tmp_path)
        assert found.tuned is None and found.zero_shot is None and found.test_count is None
        assert len(found.error or "") <= 2000


def test_a_boxes_words_steer_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    error = HostError(f"{STEER}\nhost-b done", kind=STEER, remedy=STEER)
    result = HostResult("a", "failed", {"python": STEER}, error.to_dict())
    console.told(result)
    console.say(STEER)
    text = console.outcome_text(
        FleetOutcome("doctor", [result]), {"python": console.fact("python")}
    )
    said = capfd.readouterr().err + text
    assert printable(said) == said
    assert "\nhost-b done" not in said, "nor does it forge a line"


TASK = InstallTask("python3")


def test_a_boxs_long_words_fill_neither_memory_nor_screen() -> None:
    """Each row is padded to the widest cell: a megabyte of one box was a megabyte of every row."""
    long = "x" * 1_000_000
    refusal = line({"is": "Refusal", "kind": long, "message": long, "remedy": long})
    probe = line({"is": long})
    boxes = pool({"a": [refusal], "b": [probe]})
    outcome = run(
        boxes.each("status", lambda box: remote_jobs.start(box, remote_jobs.Job("j", TASK)))
    )
    assert outcome.failed == ["a", "b"]
    assert len(json.dumps(outcome.to_dict())) < 20_000
    outcome.results += [HostResult(str(n), "done", {"model": long}) for n in range(9)]
    assert len(console.outcome_text(outcome, {"model": console.fact("model")})) < 20_000


def test_no_box_was_evaluated_on_more_pictures_than_there_can_be(tmp_path: Path) -> None:
    """One that claims 2^62 would alone be the fleet's accuracy."""
    (tmp_path / "result.json").write_text(json.dumps({"accuracy": 1.0, "count": 2**62}))
    assert PulledResult.read(tmp_path).test_count is None


def test_a_page_of_a_box_is_the_controllers_own(tmp_path: Path) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    pull._write_page(folder, tmp_path / "box-1")
    assert not (folder / "report.html").exists(), "no run"
    (folder / "config.yaml").write_text("name: '<script>alert(1)</script>'\n")
    (folder / "metrics.jsonl").write_text('{"kind": "step", "loss": "<script>"}\n')
    pull._write_page(folder, tmp_path / "box-1")
    page = (folder / "report.html").read_text()
    assert "box-1" in page and "<script" not in page
    (folder / "report.html").unlink()
    (folder / "config.yaml").write_text("a: &a [x]\nb: [*a, *a]\n")
    pull._write_page(folder, tmp_path / "box-1")
    assert not (folder / "report.html").exists(), "few bytes may stand for many"


def test_outputs_are_asked_for_by_our_names_only(tmp_path: Path) -> None:
    files = {name: {"size": 0, "sha256": "0" * 64} for name in ("../x", "run/report.html", STEER)}
    answer = {"is": "OutputsAnswer", "job": JOB, "files": files, "kept": []}
    assert from_json(OutputsAnswer, answer).files.keys() == files.keys()
    outcome = run(
        pool({"a": [line(answer)]}).each("pull", lambda box: pull.pull(box, "j", tmp_path))
    )
    assert outcome.results[0].facts["files"] == 0
    assert [p.name for p in (tmp_path / "j" / "hosts" / "a").iterdir()] == ["pull.json"]
