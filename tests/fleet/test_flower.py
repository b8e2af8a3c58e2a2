"""Flower's own SuperLink and two SuperNodes on loopback give the average that `fleet rounds` gives.

Flower's pins (typer, rich, protobuf) differ from the host's, so tools/test runs this file in an
environment of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgeladder.bundle import Bundle

TOOLS = Path(__file__).resolve().parents[2] / "tools" / "fleet"
SOURCE = Path(__file__).resolve().parents[2]
BOXES = {"a": {"pictures": 10, "shift": 1.0}, "b": {"pictures": 30, "shift": 3.0}}


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Loopback:
    """A SuperLink and its SuperNodes, all on 127.0.0.1 and without telemetry."""

    def __init__(self, folder: Path, port: int):
        self.folder = folder
        self.port = port
        self.programs = Path(sys.executable).parent
        home = folder / "flwr"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "local"\n[superlink.local]\n'
            f'address = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        self.environment = {
            **os.environ,
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_HOME": str(home),
            "PYTHONPATH": str(SOURCE),
            "PATH": f"{self.programs}:{os.environ['PATH']}",
        }
        self.processes: list[subprocess.Popen[bytes]] = []

    def spawn(self, program: str, *arguments: str) -> Path:
        """Start one of Flower's programs in the background; its log."""
        log = self.folder / f"{program}-{len(self.processes)}.log"
        with open(log, "wb") as stream:
            self.processes.append(
                subprocess.Popen(
                    [str(self.programs / program), "--insecure", *arguments],
                    env=self.environment,
                    stdout=stream,
                    stderr=stream,
                    start_new_session=True,
                )
            )
        return log

    def until(self, log: Path, words: str) -> None:
        """Wait for words in a log."""
        deadline = time.monotonic() + 120
        while words not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            assert self.processes[-1].poll() is None, log.read_text()[-2000:]
            time.sleep(0.2)

    def stop(self) -> None:
        """End everything."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            if number == signal.SIGTERM:
                time.sleep(2)
        for process in self.processes:
            process.wait()


@pytest.fixture
def loopback(tmp_path: Path) -> Iterator[Loopback]:
    """Flower's processes, stopped after the test."""
    made = Loopback(tmp_path / "flower", free_port())
    yield made
    made.stop()


def test_the_same_average_as_fleet_rounds(
    loopback: Loopback, make_farm: Any, bundle: Bundle, tmp_path: Path, fleet_cli: Any
) -> None:
    link = loopback.spawn(
        "flower-superlink", "--disable-runtime-dependency-installation",
        "--port", str(loopback.port),
    )  # fmt: skip
    loopback.until(link, "Uvicorn running")
    for name, behaviour in BOXES.items():
        home = tmp_path / f"node-{name}"
        home.mkdir()
        (home / "behaviour.json").write_text(json.dumps(behaviour))
        program = home / "edgeladder"
        program.write_text(
            f'#!/bin/sh\nHOME={home} exec {sys.executable} {TOOLS / "stand_in.py"} "$@"\n'
        )
        program.chmod(0o755)
        node = loopback.spawn(
            "flower-supernode", "--superlink", f"127.0.0.1:{loopback.port}",
            "--port", str(free_port()),
            "--node-config", f'bundle="{bundle.folder}" data="{home}" program="{program}"',
        )  # fmt: skip
        loopback.until(node, "SuperNode ID")
    average = tmp_path / "average"
    done = subprocess.run(
        [loopback.programs / "flwr", "run", TOOLS / "flower_app", "local", "--stream",
         "--run-config", f'bundle="{bundle.folder}" out="{average}" rounds=2 nodes=2'],
        env=loopback.environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (average / "adapter.safetensors").is_file(), done.stdout[-3000:] + done.stderr[-3000:]

    farm = make_farm(*BOXES)
    for name, behaviour in BOXES.items():
        farm.boxes[name].behave(**behaviour)
    code, answer = fleet_cli(
        "rounds", "2", "--name", "fed", "-i", farm.inventory, "--bundle", bundle.folder,
        "--out", tmp_path / "out", "--poll", "0.2",
    )  # fmt: skip
    assert code == 0, answer
    ours = load_file(tmp_path / "out" / "fed-r2" / "average" / "adapter.safetensors")
    theirs = load_file(average / "adapter.safetensors")
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-6)
        assert theirs[name].dtype == value.dtype
