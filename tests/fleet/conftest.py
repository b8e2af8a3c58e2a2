"""Boxes for the fleet's tests: real sshd instances on loopback.

They need Debian's openssh-server. Where it is missing the tests fail and say so; nothing is
skipped.
"""

from __future__ import annotations

import importlib.util
import json
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import edgeladder
from edgeladder.cli.app import main
from edgeladder.core.bundle import Bundle
from edgeladder.fleet.dialer import Dialer
from edgeladder.fleet.host_pool import HostPool
from edgeladder.fleet.inventory import Inventory

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "fleet"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"edgeladder_tools_{name}", TOOLS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


farm_module = _load("farm")
bundle_module = _load("tiny_bundle")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A small bundle: two tensors and a megabyte and a half of weights."""
    made: Bundle = bundle_module.write_bundle(tmp_path / "bundle", weights_bytes=1_500_000)
    return made


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An `edgeladder` for the boxes that trains nothing (tools/fleet/stand_in.py)."""
    script = tmp_path_factory.mktemp("program") / "edgeladder"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} {TOOLS / "stand_in.py"} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


@pytest.fixture(scope="session")
def farm_class() -> Any:
    """tools/fleet/farm.py's Farm, for farms that outlive a test."""
    return farm_module.Farm


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `edgeladder` of this environment, as a box would have it in its own."""
    script = tmp_path_factory.mktemp("program") / "edgeladder"
    source = Path(edgeladder.__file__).resolve().parents[1]
    start = "import sys; from edgeladder.cli.app import run; run()"
    script.write_text(f"#!/bin/sh\nPYTHONPATH={source} exec {sys.executable} -c '{start}' \"$@\"\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return script


@pytest.fixture
def make_farm(tmp_path: Path, stand_in: Path) -> Iterator[Callable[..., Any]]:
    """`make_farm("a", "b")` starts sshd boxes; all are stopped after the test."""
    farms = []

    def make(*names: str, proxied: bool = False, **defaults: str) -> Any:
        folder = tmp_path / f"farm{len(farms)}"
        farm = farm_module.Farm(
            folder, list(names), proxied=proxied, program=str(stand_in), **defaults
        )
        farms.append(farm)
        return farm.start()

    yield make
    for farm in farms:
        farm.stop()


@pytest.fixture
def pool_of() -> Callable[..., HostPool]:
    """`pool_of(farm)`: a pool of all its boxes that tries again quickly."""

    def make(farm: Any, *, timeout: float = 10.0, **more: Any) -> HostPool:
        inventory = Inventory.open(farm.inventory)
        more = {"backoff_seconds": 0.05, **more}
        return HostPool(Dialer(inventory, timeout_seconds=timeout), inventory.hosts, **more)

    return make


@pytest.fixture
def fleet_cli(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Run `edgeladder fleet ... --json` in this process: exit code and its one JSON object."""

    def run(*arguments: object) -> tuple[int, dict[str, Any]]:
        capfd.readouterr()
        code = main(["fleet", *map(str, arguments), "--json"])
        return code, json.loads(capfd.readouterr().out)

    return run
