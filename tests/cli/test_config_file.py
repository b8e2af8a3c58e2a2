"""Options from `edgeladder.yaml`: after the command line and the environment, before defaults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeladder.cli import app as application
from edgeladder.core.errors import ConfigError
from edgeladder.core.request import TrainRequest
from edgeladder.jobs.child import with_package


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What a command line asks for, as the supervisor is told it."""
    monkeypatch.chdir(tmp_path)
    for name in ("EDGELADDER_BUDGET", "EDGELADDER_CONFIG", "EDGELADDER_CACHE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "pictures").mkdir()
    seen: list[TrainRequest] = []

    def told(request, *more):
        seen.append(request)
        raise ConfigError("far enough")

    monkeypatch.setattr("edgeladder.jobs.supervisor.train", told)
    monkeypatch.setattr("edgeladder.jobs.supervisor.precompute", told)

    def ask(*words: str, file: str | None = None) -> TrainRequest:
        if file is not None:
            Path("edgeladder.yaml").write_text(file)
        assert application.main([*words]) == 2
        return seen.pop()

    return ask


GOOD = """
budget: 160MB
data: pictures
page: of-other-commands.html
train:
  shots: 16
  set: [train.steps=200, train.batch=8]
  fresh: true
precompute:
  views: 3
"""


def test_options_of_all_commands_and_of_one(asked):
    request = asked("train", file=GOOD)
    assert request.budget_bytes == 160_000_000 and request.data == "pictures"
    assert request.shots == 16 and request.overrides == ["train.steps=200", "train.batch=8"]
    assert request.previous is None  # fresh
    other = asked("precompute")
    assert other.views == 3 and other.shots is None and other.budget_bytes == 160_000_000


def test_the_command_line_and_the_environment_come_first(asked, monkeypatch):
    assert asked("train", "--shots", "4", file=GOOD).shots == 4
    monkeypatch.setenv("EDGELADDER_BUDGET", "200MB")
    assert asked("train").budget_bytes == 200_000_000
    assert asked("train", "--budget", "300MB").budget_bytes == 300_000_000


def test_the_environment_names_another_file(asked, tmp_path, monkeypatch, capfd):
    (tmp_path / "other.yaml").write_text("data: pictures\nbudget: 180MB\n")
    monkeypatch.setenv("EDGELADDER_CONFIG", str(tmp_path / "other.yaml"))
    assert asked("train", file=GOOD).budget_bytes == 180_000_000
    monkeypatch.setenv("EDGELADDER_CONFIG", "gone.yaml")
    assert application.main(["devices"]) == 2
    assert "no file at gone.yaml\nwhere: EDGELADDER_CONFIG" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("budgte: 160MB\n", "there is no option 'budgte', did you mean 'budget'?"),
        ("trian:\n  shots: 3\n", "there is no command 'trian', did you mean 'train'?"),
        ("train:\n  shot: 3\n", "train has no option --shot, did you mean 'shots'?"),
        ("train:\n  json: true\n", "train has no option --json"),
        ("- budget\n", "not options and their values"),
        ("budget: {a: 1}\n", "there is no command 'budget'"),
        ("budget: [[1]]\n", "budget is no value of an option"),
        ("budget: 4\n", "write 4GB"),
        ("train: 3\n", "there is no option 'train'"),
    ],
)
def test_what_means_nothing_is_refused(tmp_path, monkeypatch, capfd, text, words):
    monkeypatch.chdir(tmp_path)
    Path("edgeladder.yaml").write_text(text)
    assert application.main(["train", "--bundle", "nano", "--json"]) == 2
    assert words.split(", did")[0] in str(json.loads(capfd.readouterr().out)["error"]), text


def test_a_group_and_its_commands_have_sections_of_their_own(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("elsewhere/one").mkdir(parents=True)
    (Path("elsewhere/one") / "config.yaml").write_text("")
    Path("edgeladder.yaml").write_text("runs:\n  folder: elsewhere\nruns unpin:\n  folder: other\n")
    assert application.main(["runs", "--json"]) == 0
    assert [item["name"] for item in json.loads(capfd.readouterr().out)["runs"]] == ["one"]
    assert application.main(["runs", "unpin", "--json"]) == 0


SECTIONS = "train: {shots: 4}\nfleet push: {bundle: here}\n"


def test_sections_of_other_commands_load_none_of_them(tmp_path):
    """What fleets import (numpy, asyncio) is 40 MB more beside every worker of a budget."""
    (tmp_path / "edgeladder.yaml").write_text(SECTIONS)
    code = (
        "import sys; from edgeladder.cli.app import main\n"
        "code = main(['condense', '--run', 'none'])\n"
        "print(code, sorted({'numpy', 'edgeladder.fleet', 'asyncio'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=with_package(dict(os.environ)),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[-2] == "2 []"


def test_a_lazy_groups_own_sections_are_judged_by_it(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    Path("edgeladder.yaml").write_text("fleet psh: {bundle: here}\n")
    assert application.main(["fleet", "status", "--inventory", "boxes.yaml"]) == 2
    assert "there is no command 'fleet psh', did you mean 'fleet push'?" in capfd.readouterr().err


def test_without_a_file_no_yaml_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert application.config_file.defaults(None, ["train"], None) == {}
