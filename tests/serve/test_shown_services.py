"""The services that pages show start as typed, answer a picture and end when they are asked to."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.conftest import own_program
from tests.serve.conftest import Running
from tests.serve.test_watch import rows, until
from tests.tools.test_shown_commands import PAGES, ROOT, placeholder, typed, words

LINES = [
    (page, line)
    for page in PAGES
    for line in typed(page)
    if not placeholder(line) and words(line)[:1] in (["serve"], ["watch"])
]


@pytest.fixture
def place(nano_run, tmp_path, monkeypatch):
    """A folder with the runs that the pages name, and what lies elsewhere on a real box."""
    for name in ("first", "clothing"):
        shutil.copytree(nano_run, tmp_path / "runs" / name)
    for name in ("incoming", "srv/camera", "frames"):
        (tmp_path / name).mkdir(parents=True)
    token = tmp_path / ".edgeladder-token"
    token.write_text("0123456789abcdef0123456789abcdef\n")
    token.chmod(stat.S_IRUSR | stat.S_IWUSR)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def moved(line: str, place: Path) -> str:
    """The line with this folder in the place of a box's own."""
    return line.replace("/srv/", f"{place}/srv/").replace("~/", f"{place}/")


@pytest.mark.parametrize(("page", "line"), LINES, ids=[" ".join(line.split()) for _, line in LINES])
def test_it_runs_as_shown(place, pictures, page, line):
    if "--source" in line:
        pytest.importorskip("av", reason="needs the extra [camera]")
    shown = moved(line, place)
    if "--print-unit" in line:
        first = shown.partition("|")[0]  # what follows needs systemd and its administrator
        done = subprocess.run(
            ["bash", "-c", first], env=own_program(place / "bin"), capture_output=True, text=True
        )
        assert done.returncode == 0 and "ExecStart=" in done.stdout, done.stderr
        return
    given = words(shown)
    service = Running(*given, *(["--port", "0"] if given[0] == "serve" else []))
    try:
        if "/dev/video0" in given:  # no camera is here, and it says so
            assert service.process.wait(120) in (2, 4), service.lines
            assert any("/dev/video0" in line for line in service.lines)
            return
        service.says("listening on " if given[0] == "serve" else "watching ")
        if "--source" not in given and "--out" in given:
            shutil.copy(pictures[0], Path(given[1]) / "one.png")
            until(lambda: len(rows(Path(given[given.index("--out") + 1]))) == 1)
        assert service.end()[0] in (0, 143), service.lines
    finally:
        service.stop()


def test_there_are_some():
    assert {words(line)[0] for _, line in LINES} == {"serve", "watch"}
    assert str(ROOT)
