"""`fleet install` with the real wheel, a real pip and real environments on sshd boxes, offline:
from a pushed wheelhouse, and from a registry on loopback."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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


@pytest.fixture
def registry(wheel: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a package index (PEP 503: a folder of links) with the wheel in it."""
    project = tmp_path / "index" / "edgeladder"
    project.mkdir(parents=True)
    shutil.copy(wheel, project)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(project.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_wheelhouse_without_internet(
    make_farm: Any, wheelhouse: Path, system_packages: Path, fleet_cli: Any
) -> None:
    farm = make_farm("good", "bare", python=sys.executable)  # packages are for this version
    good, bare = farm.boxes.values()
    good.set_environment(PYTHONPATH=system_packages)

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
    assert Path(said.strip()).resolve().is_relative_to(venv.resolve())
    said = subprocess.run(
        [venv / "bin" / "edgeladder", "--version"],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert __version__ in said

    code, answer = fleet_cli(*install, "--limit", "good")
    assert code == 0 and answer["hosts"]["good"]["state"] == "unchanged", answer
    assert answer["hosts"]["good"]["attempts"] == 1


def test_from_a_registry(
    make_farm: Any, registry: str, system_packages: Path, fleet_cli: Any
) -> None:
    farm = make_farm("a", python=sys.executable)
    box = farm.boxes["a"]
    # the address by the box's own pip settings, as where a site has a mirror
    box.set_environment(PYTHONPATH=system_packages, PIP_INDEX_URL=registry)
    values = yaml.safe_load(farm.inventory.read_text())
    del values["defaults"]["program"]  # as installed
    farm.inventory.write_text(yaml.safe_dump(values))
    code, answer = fleet_cli("install", "-i", farm.inventory)
    assert code == 0 and answer["hosts"]["a"]["state"] == "done", answer
    code, answer = fleet_cli("doctor", "-i", farm.inventory)
    assert answer["hosts"]["a"]["installed"]["edgeladder"] == __version__
    assert not (box.root / "trees").exists()  # nothing was pushed over


def test_a_wheelhouse_without_edgeladder(make_farm: Any, tmp_path: Path, fleet_cli: Any) -> None:
    farm = make_farm("a")
    code, answer = fleet_cli("install", "--wheelhouse", tmp_path / "empty", "-i", farm.inventory)
    assert code == 2 and "tools/fleet/wheelhouse" in answer["error"]["remedy"]
    assert not (farm.boxes["a"].root).exists()
