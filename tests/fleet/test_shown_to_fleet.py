"""The commands that a page shows for a fleet, in their order, on real sshd boxes.

`fleet install` has tests of its own (`test_install.py`); what trains on the boxes is a stand-in.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeladder.cli.app import main
from edgeladder.core.bundle import Bundle
from tests.tools.test_shown_commands import ROOT, placeholder, typed, words


# one page shows a fleet from install to report, the other single commands, some for one box
@pytest.mark.parametrize(
    ("page", "boxes"), [("docs/commands.md", ["barn"]), ("docs/fleet.md", ["barn", "gate"])]
)
def test_what_a_page_shows_works(
    make_farm: Any, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str], page: str, boxes: list[str],
) -> None:  # fmt: skip
    farm = make_farm(*boxes)
    monkeypatch.chdir(tmp_path)
    lines = [line for line in typed(ROOT / page) if line.startswith("edgeladder fleet ")]
    assert len(lines) > 8
    job = "none yet"
    for line in lines:
        if placeholder(line) or "fleet install" in line:
            continue
        given = [word.replace("JOB", job) for word in words(line)]
        if "example" in given:
            assert main(given) == 0 and "hosts:" in capfd.readouterr().out
            # the edit that the page asks for: these boxes instead of the example's
            shutil.copy(farm.inventory, "fleet.yaml")
            shutil.copy(farm.folder / "known_hosts", "known_hosts")
            continue
        capfd.readouterr()
        code = main([*given, "--json"])
        told = capfd.readouterr()
        assert code == 0, f"{line}\n{told.out}{told.err}"
        if "train" in given:
            job = json.loads(told.out)["job"]
    assert any((tmp_path / "fleet").glob("*/report.html"))
