"""A box runs our own commands by name, with checked arguments: no picture can be asked for."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from edgeladder.fleet.box import records, serve
from edgeladder.fleet.box.commands import command_of
from edgeladder.fleet.box.records import (
    EvaluateTask,
    InstallTask,
    StartRequest,
    TrainOptions,
    TrainTask,
)
from edgeladder.fleet.box.store import Refused

DIGEST = "0" * 64
PICTURE = b"\xff\xd8 a picture \xff\xd9"
TRAIN = TrainTask("{root}/venv/bin/edgeladder", "~/pictures", TrainOptions(DIGEST))


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A box with a bundle, a picture, and `cat` under the name of our program, pushed to it."""
    (tmp_path / "trees" / "bundle" / DIGEST).mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.jpg").write_bytes(PICTURE)
    pushed = tmp_path / "trees" / "data" / DIGEST
    pushed.mkdir(parents=True)
    (pushed / "edgeladder").write_text(f"#!/bin/sh\ncat {tmp_path / 'data' / '1.jpg'}\n")
    (pushed / "edgeladder").chmod(0o755)
    return tmp_path


def answer(root: Path, request: object) -> dict[str, Any]:
    """The agent's answer to values as they come over the line."""
    out = io.BytesIO()
    line = json.dumps({"root": str(root), "request": request}).encode()
    serve.answer(line, io.BytesIO(), out)
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


def test_a_raw_command_is_refused(box: Path) -> None:
    """What the agent once ran: any command line, whose output was then pulled as result.json."""
    cat = ["/bin/cat", str(box / "data" / "1.jpg")]
    values = records.to_json(StartRequest("steal", TRAIN))
    assert isinstance(values, dict)
    for request in (
        {"is": "StartRequest", "job": "steal", "command": cat},
        {"op": "start", "job": "steal", "command": cat},
        {**values, "command": cat},
        {**values, "task": cat},
        {**values, "task": {"is": "ShellTask", "command": cat}},
        {**values, "resume": cat},
    ):
        said = answer(box, request)
        assert said["is"] == "Refusal" and said["kind"] == "refused", said
    assert not (box / "jobs").exists()


OPTIONS = {
    "bundle_digest": ["../../data", "A" * 64],
    "adapter_digest": ["../../data/1.jpg"],
    "engine": ["os:system", "stock --run x"],
    "profile": ["/data/1.jpg", "../data/1.yaml", "1.yaml", "--run=/data"],
    "overrides": [("--run=/data/1.jpg",), ("a.b",), ("a=1\nb=2",)],
}
TASK = {
    "program": ["/bin/cat", "/bin/sh", "edgeladder", "../edgeladder", "/opt/../bin/edgeladder"],
    "data": ["--run", "pictures", "~/../other"],
    "device": ["/data/1.jpg", "mine.yaml", "--json"],
    "budget": ["--run", "/data", "much"],
}


@pytest.mark.parametrize(
    "task",
    [
        *(
            dataclasses.replace(TRAIN, options=dataclasses.replace(TRAIN.options, **{name: value}))
            for name, values in OPTIONS.items()
            for value in values
        ),
        *(dataclasses.replace(TRAIN, **{n: v}) for n, values in TASK.items() for v in values),
        dataclasses.replace(TRAIN, program=f"{{root}}/trees/data/{DIGEST}/edgeladder"),
        EvaluateTask("/bin/cat", "~/pictures", DIGEST, DIGEST),
        EvaluateTask("{root}/venv/bin/edgeladder", "~/pictures", DIGEST, "data"),
        InstallTask("/bin/cat"),
        InstallTask(f"{{root}}/trees/data/{DIGEST}/python3"),
        InstallTask("sh"),
        InstallTask("python3", version="1 --index-url http://elsewhere"),
        InstallTask("python3", extras="a] @ file:///data/1.jpg"),
        InstallTask("python3", wheelhouse_digest="../data"),
    ],
)
def test_arguments_that_lead_elsewhere_are_refused(box: Path, task: Any) -> None:
    assert answer(box, records.to_json(StartRequest("j", task)))["is"] == "Refusal"
    assert not (box / "jobs" / "j").exists()
    with pytest.raises(Refused):
        command_of(task, str(box))


def test_the_command_lines_of_tasks(tmp_path: Path) -> None:
    options = TrainOptions(DIGEST, "maple-2", 4, 7, "stock", ("head={kind: none}",), "1" * 64)
    task = TrainTask("~/bin/edgeladder", "/srv/pictures", options, "raspberry-pi-5", "1.5GB")
    command = command_of(task, str(tmp_path))
    bundle, start = f"{{root}}/trees/bundle/{DIGEST}", f"{{root}}/trees/adapter/{'1' * 64}"
    words = (
        "~/bin/edgeladder", "train", "--json", "--bundle", bundle, "--data", "/srv/pictures",
        "--cache", "{root}/cache", "--device", "raspberry-pi-5", "--budget", "1.5GB",
        "--profile", "maple-2", "--shots", "4", "--seed", "7", "--engine", "stock",
        "--start", start, "--set", "head={kind: none}",
    )  # fmt: skip
    assert command.words == (*words, "--run", "{job}/run")
    assert command.resume == (*words, "--resume", "{job}/run")
    assert command.requires == ("~/bin/edgeladder", start, bundle)
    install = command_of(InstallTask("python3.11", "1.0", "ort-training"), str(tmp_path))
    assert install.words[-1] == "edgeladder[ort-training]==1.0"


@pytest.mark.parametrize(
    "record",
    [
        records.Call("~/r", StartRequest("j", TRAIN, supersede=2)),
        records.Call("/r", records.HaveRequest("bundle", DIGEST, {DIGEST: 3}, verify=True)),
        records.Call("/r", records.ReceiveRequest((records.BlobPart(DIGEST, 3, 1),))),
        records.Call("/r", records.StopRequest("j", 0.5)),
        records.OutputsAnswer(
            records.JobState("done", 0, 1, "setsid", 1.5),
            {"log": records.FileRecord(1, "a")},
            ("b",),
        ),
        records.StatusAnswer(records.JobState("absent"), 0, ()),
    ],
)
def test_records_come_back_as_they_were(record: Any) -> None:
    values = json.loads(json.dumps(records.to_json(record)))
    assert records.from_json(type(record), values) == record


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "no object"),
        ({"sha256": "a", "size": True, "offset": 0}, "size is bool, should be int"),
        ({"sha256": "a", "size": 1}, "offset"),
        ({"sha256": "a", "size": 1, "offset": 0, "path": "/"}, "unknown key 'path'"),
        ({"is": "JobFile"}, "should be BlobPart"),
    ],
)
def test_records_of_another_kind_are_refused(values: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        records.from_json(records.BlobPart, values)


def test_a_job_of_an_older_version_is_known(tmp_path: Path) -> None:
    """job.json has kept its keys, so that the same training is not started a second time."""
    folder = tmp_path / "jobs" / "j"
    folder.mkdir(parents=True)
    words = list(command_of(TRAIN, str(tmp_path)).words)
    old = {"command": words, "attempts": 1, "started": 1.5, "via": "setsid"}
    (folder / "job.json").write_text(json.dumps(old))
    (folder / "exit").write_text("0\n")
    for path in ("venv/bin", f"trees/bundle/{DIGEST}"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "edgeladder").touch()
    said = answer(tmp_path, records.to_json(StartRequest("j", TRAIN)))
    assert said["started_now"] is False and said["job"]["state"] == "done"
