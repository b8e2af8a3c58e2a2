"""Nothing secret is written or printed anywhere: no key, no environment, no password option."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from edgeladder.cli.app import main
from edgeladder.cli.fleet_commands import app
from edgeladder.core.bundle import Bundle

SECRET = "swordfish-71"


def test_neither_keys_nor_environments_are_written(
    make_farm: Any,
    bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A whole round, one box failing; then all that was said and stored is searched."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("REGISTRY_TOKEN", SECRET)  # of the controller; the boxes' own is below
    farm = make_farm("a", "b")
    farm.boxes["b"].behave(exit=1)
    for box in farm.boxes.values():
        box.set_environment(BOX_TOKEN=SECRET)
    common = ("-i", str(farm.inventory))
    job = ("--job", "j", *common)
    of_bundle = ("--bundle", str(bundle.folder))
    out = ("--out", str(tmp_path / "out"))
    assert main(["fleet", "doctor", *common]) == 0
    assert main(["fleet", "push", *common, *of_bundle]) == 0
    assert main(["fleet", "train", *job, *of_bundle, "--wait", "--poll", "0.1"]) == 6
    assert main(["fleet", "logs", *job]) == 6
    assert main(["fleet", "pull", *job, *of_bundle, *out]) == 0
    assert main(["fleet", "report", "--job", "j", *out]) == 0
    assert main(["fleet", "trust", *common]) == 0
    said = capfd.readouterr()
    texts = [said.out, said.err, caplog.text]
    written = [tmp_path / "out", *(box.root for box in farm.boxes.values())]
    files = [path for folder in written for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "log" for path in files) and any(p.suffix == ".html" for p in files)
    texts += [path.read_bytes().decode("latin-1") for path in files]
    key = farm.key.read_text().splitlines()[1]
    assert not any(SECRET in text or key in text or "PRIVATE KEY" in text for text in texts)


def test_no_command_takes_a_password() -> None:
    """What is on a command line is seen by every user of the machine."""
    group: Any = get_command(app)
    names = {
        name
        for command in group.commands.values()
        for parameter in command.params
        for name in parameter.opts
    }
    assert "--inventory" in names
    assert not [name for name in names if any(w in name for w in ("pass", "secret", "token"))]
