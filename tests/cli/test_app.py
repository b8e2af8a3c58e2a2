"""The error boundary: exit codes, messages, and exactly one JSON object on stdout."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from edgeladder import __version__
from edgeladder.cli import app as application
from edgeladder.cli.output import Answer
from edgeladder.core import errors
from edgeladder.core.shipped import DEMO_PICTURES

Main = Callable[[list[str]], int]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Make `edgeladder doctor` raise what a test wants."""

    def make(error: BaseException) -> None:
        def examine(bundle: object) -> None:
            raise error

        monkeypatch.setattr("edgeladder.doctor.examine", examine)

    return make


def answer_of(capfd: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capfd.readouterr().out)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("m", where="w", remedy="r"), 2),
        (errors.BudgetError("m", where="w", remedy="r"), 3),
        (errors.DataError("m", where="w", remedy="r"), 4),
        (errors.IntegrityError("m", where="w", remedy="r"), 5),
        (errors.FleetError("m", where="w", remedy="r"), 6),
        (errors.StorageError("m", where="w", remedy="r"), 7),
        (errors.Interrupted("m", where="w", remedy="r"), 130),
        (errors.EdgeLadderError("m", where="w", remedy="r"), 1),
    ],
)
def test_errors_become_exit_codes_and_json(raising, capfd, error, code):
    raising(error)
    assert application.main(["doctor", "--json"]) == code
    expected = {"type": type(error).__name__, "message": "m", "where": "w", "remedy": "r"}
    assert answer_of(capfd) == {"error": expected}

    assert application.main(["doctor"]) == code
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "error: m\nwhere: w\nhelp:  r\n"


def test_a_budget_error_names_the_smallest_budget(raising, capfd):
    raising(errors.BudgetError("too small", minimum_budget_bytes=123))
    assert application.main(["doctor", "--json"]) == 3
    assert answer_of(capfd)["error"]["minimum_budget_bytes"] == 123


@pytest.mark.parametrize(
    ("error", "code", "kind", "words"),
    [
        (KeyboardInterrupt(), 130, "EdgeLadderError", "interrupted"),
        (
            ZeroDivisionError("by zero"),
            1,
            "EdgeLadderError",
            "unexpected ZeroDivisionError: by zero",
        ),
        (OSError(errno.ENOSPC, "full", "f"), 7, "StorageError", "no space left on the device"),
        (MemoryError(), 3, "BudgetError", "out of memory"),
        (ModuleNotFoundError("no", name="torch.nn"), 2, "ConfigError", "needs torch"),
        (ModuleNotFoundError("no", name="asyncssh"), 2, "ConfigError", "needs asyncssh"),
    ],
)
def test_other_exceptions_are_explained(raising, capfd, error, code, kind, words):
    raising(error)
    assert application.main(["doctor", "--json"]) == code
    failure = answer_of(capfd)["error"]
    assert failure["type"] == kind
    assert words in failure["message"]
    assert failure["remedy"]


def test_a_missing_extra_names_the_pip_command(raising, capfd):
    raising(ModuleNotFoundError("no", name="asyncssh"))
    application.main(["doctor"])
    assert "pip install 'edgeladder[fleet]'" in capfd.readouterr().err


def test_the_traceback_is_shown_on_request_only(raising, capfd, monkeypatch):
    raising(ZeroDivisionError("by zero"))
    application.main(["doctor"])
    message = capfd.readouterr().err
    assert "Traceback" not in message
    assert "EDGELADDER_TRACEBACK=1" in message
    monkeypatch.setenv("EDGELADDER_TRACEBACK", "1")
    application.main(["doctor"])
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--jsn"], "--jsn"),
        (["trian"], "trian"),
        (["export"], "--model"),
        (["train", "--shots", "0"], "--shots"),
        (["train", "--shots", "many"], "--shots"),
    ],
)
def test_wrong_usage_is_exit_2(capfd, arguments, words):
    assert application.main(arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert "--help" in captured.err


def test_wrong_usage_with_json_is_one_object(capfd):
    assert application.main(["train", "--json", "--nonsense"]) == 2
    failure = answer_of(capfd)["error"]
    assert (failure["type"], failure["where"]) == ("ConfigError", "edgeladder train")


def test_everything_missing_is_named_together(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert application.main(["train", "--bundle", "bundle", "--json"]) == 2
    failure = answer_of(capfd)["error"]
    assert failure["message"] == "no bundle at bundle and no pictures at data"
    assert "edgeladder export --model ViT-B/16" in failure["remedy"]
    assert "--data" in failure["remedy"]


def test_without_a_bundle_the_one_that_ships_is_taken(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert application.main(["train", "--json"]) == 2  # nothing but pictures is missing
    assert answer_of(capfd)["error"]["message"] == "no pictures at data"
    with zipfile.ZipFile(DEMO_PICTURES) as archive:
        archive.extractall("data")
    plans = []
    for arguments in ([], ["--bundle", "nano"]):
        assert application.main(["plan", "--budget", "2GB", "--json", *arguments]) == 0
        captured = capfd.readouterr()
        assert ("no ./bundle here" in captured.err) is not bool(arguments)
        phases = json.loads(captured.out)["phases"]
        plans.append(phases["train"]["parts"]["graphs"])
    assert plans[0] and plans[0] == plans[1]
    Path("nano").mkdir()  # a folder of that name is meant, if there is one
    assert application.main(["bundle", "verify", "--bundle", "nano", "--json"]) == 2


@pytest.mark.parametrize("command", ["evaluate", "report", "deploy", "predict x.png"])
def test_a_missing_run_names_the_command_that_makes_one(tmp_path, monkeypatch, capfd, command):
    monkeypatch.chdir(tmp_path)
    assert application.main([*command.split(), "--json"]) == 2
    assert "edgeladder train" in answer_of(capfd)["error"]["remedy"]


@pytest.mark.parametrize("budget", ["lots", "0", "-4GB", "4QB"])
def test_a_budget_that_is_no_size(tmp_path, monkeypatch, capfd, budget):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert application.main(["train", f"--budget={budget}", "--json"]) == 2
    assert "4GiB" in answer_of(capfd)["error"]["remedy"]


def test_json_mode_keeps_stray_writing_off_stdout(monkeypatch, capfd):
    def examine(bundle: object) -> Answer:
        print("a stray print")
        os.write(1, b"a stray write of a library\n")
        subprocess.run([sys.executable, "-c", "print('a child')"], check=True)
        raise errors.DataError("bad")

    monkeypatch.setattr("edgeladder.doctor.examine", examine)
    assert application.main(["doctor", "--json"]) == 4
    captured = capfd.readouterr()
    assert json.loads(captured.out)["error"]["message"] == "bad"
    for words in ("a stray print", "a stray write", "a child"):
        assert words in captured.err


def test_version_and_bare_call(capfd):
    assert application.main(["--version"]) == 0
    assert capfd.readouterr().out == f"edgeladder {__version__}\n"
    assert application.main([]) == 0
    assert "Usage: edgeladder" in capfd.readouterr().out


def test_every_command_takes_json():
    for path, command in commands():
        names = [name for parameter in command.params for name in parameter.opts]
        assert "--json" in names, path


def test_every_command_has_help(capfd):
    for path, _ in commands():
        assert application.main([*path.split(), "--help"]) == 0, path
        assert f"Usage: edgeladder {path}" in capfd.readouterr().out


def test_a_guide_documents_every_command_and_exit_code():
    guide = (Path(__file__).parents[2] / "docs/commands.md").read_text(encoding="utf-8")
    for path, _ in commands():
        assert f"\n### {path}\n" in guide, path
    for code in (0, 1, 2, 3, 4, 5, 6, 7, 130):
        assert f"| {code} |" in guide


def commands() -> list[tuple[str, object]]:
    """Every command the base install has, with its words; the fleet's are its own tests' matter."""
    found = []
    root = typer.main.get_command(application.app)
    for name, command in root.commands.items():
        children = getattr(command, "commands", {})
        found += [(f"{name} {child}", item) for child, item in children.items()]
        if not children:
            found.append((name, command))
    assert len(found) > 12
    return found
