"""What every command has: groups of options, an example that parses, -q and -v, completion."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import edgeladder
from edgeladder.cli import app as application
from edgeladder.cli import fleet_commands, verbosity
from edgeladder.cli.examples import EXAMPLES
from edgeladder.core.progress import NORMAL, QUIET, VERBOSE


def commands() -> dict[str, object]:
    """Every command by its words."""
    found = {}
    root = typer.main.get_command(application.app)
    fleet = typer.main.get_command(fleet_commands.app)
    for name, command in {**root.commands, "fleet": fleet}.items():
        children = getattr(command, "commands", {})
        found |= {f"{name} {child}": item for child, item in children.items()}
        if not children:
            found[name] = command
    return found


def test_each_command_has_an_example_and_no_example_lacks_its_command():
    known = commands()
    assert [words for words in known if not known[words].examples(words)] == []
    assert set(EXAMPLES) - set(known) == set()


def test_an_example_is_what_its_command_takes():
    known = commands()
    for words, command in known.items():
        for line in command.examples(words):
            program, *given = shlex.split(line.split(">")[0])
            assert program == "edgeladder", line
            own, rest = given[: len(words.split())], given[len(words.split()) :]
            if own == words.split():  # an example may end in another command, or begin with one
                command.make_context(words, rest, resilient_parsing=False)


def test_help_shows_groups_and_the_example(capfd):
    assert application.main(["train", "--help"]) == 0
    text = capfd.readouterr().out
    places = [text.index(f"\n{name}:\n") for name in ("Data", "Budget and device", "Output")]
    assert places == sorted(places)
    assert f"Example:\n  {EXAMPLES['train']}\n" in text
    assert text.count("--budget <str>") == 1 or text.count("--budget TEXT") == 1
    assert text.index("--data ") < places[1] < text.index("--device ")


@pytest.mark.parametrize(
    ("flag", "level"), [([], NORMAL), (["-q"], QUIET), (["--quiet"], QUIET), (["-v"], VERBOSE)]
)
def test_each_command_can_be_quiet_or_verbose(monkeypatch, flag, level):
    seen = []

    def examine(bundle: object) -> None:
        seen.append(verbosity.level())
        raise SystemExit(0)

    monkeypatch.setattr("edgeladder.doctor.examine", examine)
    application.main(["doctor", *flag])
    assert seen == [level]
    for words, command in commands().items():
        names = [name for parameter in command.params for name in parameter.opts]
        assert {"-q", "-v"} <= set(names), words


def test_verbose_shows_where_an_unexpected_error_came_from(monkeypatch, capfd):
    def examine(bundle: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("edgeladder.doctor.examine", examine)
    assert application.main(["doctor"]) == 1
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err and "-v" in captured.err
    assert application.main(["doctor", "-v"]) == 1
    assert "Traceback" in capfd.readouterr().err


def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from edgeladder.cli.app import run; run()", *words],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(edgeladder.__file__).parents[1]),
            **environment,
        },
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_shell_completes_commands_and_options():
    found = run(_EDGELADDER_COMPLETE="complete_bash", COMP_WORDS="edgeladder pre", COMP_CWORD="1")
    assert found.stdout.split() == ["precompute", "predict"], found.stderr
    found = run(
        _EDGELADDER_COMPLETE="complete_bash", COMP_WORDS="edgeladder train --bu", COMP_CWORD="2"
    )
    assert found.stdout.split() == ["--bundle", "--budget"], found.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_of_a_shell_can_be_shown(shell: str):
    found = run(_EDGELADDER_COMPLETE=f"source_{shell}")
    assert found.returncode == 0, found.stderr
    assert "_EDGELADDER_COMPLETE" in found.stdout
