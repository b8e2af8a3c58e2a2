"""`fleet install` with the real wheel, a real pip and real environments on sshd boxes, offline."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from edgeladder import __version__


@pytest.fixture
def wheelhouse(wheel: Path, tmp_path: Path) -> Path:
    """The wheel alone: what it depends on has to be on the box already."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    shutil.copy(wheel, folder)
    return folder


@pytest.fixture
def system_packages(tmp_path: Path) -> Path:
    """All that this environment has but edgeladder, as a box has it whose onnxruntime came with
    its system."""
    folder = tmp_path / "site"
    folder.mkdir()
    for kind in {"purelib", "platlib"}:
        for path in Path(sysconfig.get_path(kind)).iterdir():
            ours = path.name.startswith(("edgeladder", "_edgeladder", "__editable__"))
            if not ours and path.suffix != ".pth" and not (folder / path.name).exists():
                (folder / path.name).symlink_to(path)
    return folder


def test_a_wheelhouse_without_internet(
    make_farm: Any, wheelhouse: Path, system_packages: Path, fleet_cli: Any
) -> None:
    farm = make_farm("good", "bare")
    good, bare = farm.boxes.values()
    good.stop()
    settings = good.folder / "config"
    home = f"SetEnv HOME={good.home}"
    settings.write_text(settings.read_text().replace(home, f"{home} PYTHONPATH={system_packages}"))
    good.start()

    install = ("install", "--wheelhouse", wheelhouse, "-i", farm.inventory)
    code, answer = fleet_cli(*install)
    assert code == 6, answer
    assert answer["hosts"]["good"]["state"] == "done", answer
    failure = answer["hosts"]["bare"]["error"]
    assert failure["kind"] == "job" and "fleet logs" in failure["remedy"]
    (log,) = bare.root.glob("jobs/install-*/log")
    assert "No matching distribution" in log.read_text()  # nothing from a registry
    assert not (bare.root / "venv").exists()  # half an environment is none

    venv = good.root / "venv"
    assert venv.is_symlink()
    environment = {"HOME": str(good.home), "PYTHONPATH": str(system_packages)}
    said = subprocess.run(
        [venv / "bin" / "python", "-P", "-c", "import edgeladder; print(edgeladder.__file__)"],
        env=environment, cwd=good.home, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert Path(said.strip()).is_relative_to(venv.resolve())
    said = subprocess.run(
        [venv / "bin" / "edgeladder", "--version"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert __version__ in said

    code, answer = fleet_cli(*install, "--limit", "good")
    assert code == 0 and answer["hosts"]["good"]["state"] == "unchanged", answer
    assert answer["hosts"]["good"]["attempts"] == 1


def test_a_wheelhouse_without_edgeladder(make_farm: Any, tmp_path: Path, fleet_cli: Any) -> None:
    farm = make_farm("a")
    code, answer = fleet_cli("install", "--wheelhouse", tmp_path / "empty", "-i", farm.inventory)
    assert code == 2 and "tools/fleet/wheelhouse" in answer["error"]["remedy"]
    assert not (farm.boxes["a"].root).exists()
