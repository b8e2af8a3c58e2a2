"""Folders in passing: what a killed process left is removed by the next, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edgeladder
from edgeladder.core.passing_folder import PassingFolder

ROOT = str(Path(edgeladder.__file__).parents[1])
HOLDS = """
import sys, time
from edgeladder.core.passing_folder import PassingFolder
print(PassingFolder("held").path, flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


def age(folder: Path) -> None:
    before = time.time() - 3600
    os.utime(folder, (before, before))


def test_it_is_private_and_goes_when_it_is_closed(place: Path) -> None:
    folder = PassingFolder("serve")
    assert folder.path.parent == place and folder.path.name.startswith("edgeladder-serve-")
    assert folder.path.stat().st_mode & 0o777 == 0o700
    (folder.path / "inner").mkdir()
    folder.close()
    folder.close()
    assert not folder.path.exists()


def test_what_a_killed_process_left_goes_with_the_next_and_what_lives_stays(place: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )  # fmt: skip
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    age(left)
    PassingFolder().close()
    assert left.is_dir()  # it lives
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    age(left)
    PassingFolder().close()
    assert not left.exists()


def test_others_folders_stay(place: Path) -> None:
    foreign, young = place / "edgeladder-notes", place / "edgeladder-young"
    for folder in (foreign, young):
        folder.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    age(foreign)
    (young / ".lock").touch()  # another process is making it
    link = place / "edgeladder-link"
    link.symlink_to(foreign)
    PassingFolder().close()
    assert (foreign / "thesis.txt").is_file() and young.is_dir() and link.is_symlink()
