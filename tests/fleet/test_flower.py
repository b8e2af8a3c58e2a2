"""Flower's engines give the average that `fleet rounds` gives: a SuperLink with two SuperNodes on
loopback, and the simulation engine.

Flower's pins (typer, rich, protobuf) differ from the host's, so tools/test runs this file in an
environment of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from edgeladder.core.bundle import Bundle
from edgeladder.core.initial import initial_values
from tests.conftest import make_pictures

APP = Path(__file__).resolve().parents[2] / "tools" / "fleet" / "flower_app"
SOURCE = Path(__file__).resolve().parents[2]
BOXES = {"a": 6, "b": 6}  # pictures of each class; our rounds let no box of two outweigh
SET = "train.epochs=1 head.kind=gda head.weight=2"  # a head, as the default profile has


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

    def run(self, config: str, *more: str) -> None:
        """Submit the app with this configuration and wait for its end."""
        done = subprocess.run(
            [self.programs / "flwr", "run", APP, "local", "--stream", "--run-config", config,
             *more],
            env=self.environment, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        said = done.stdout[-4000:] + done.stderr[-2000:]
        assert done.returncode == 0 and "ERROR" not in done.stdout, said

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


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one folder of each box's own pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, count in BOXES.items():
        make_pictures(folder / name, classes=3, count=count)
    return folder


@pytest.fixture(scope="module")
def ours(
    farm_class: Any,
    program: Path,
    pictures: Path,
    bundle_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What `fleet rounds` makes of two rounds of real trainings on sshd boxes."""
    folder = tmp_path_factory.mktemp("fleet")
    farm = farm_class(folder / "farm", list(BOXES), program=str(program), budget="2GB").start()
    try:
        values = yaml.safe_load(farm.inventory.read_text())
        for name in BOXES:
            values["hosts"][name]["data"] = str(pictures / name)
        farm.inventory.write_text(yaml.safe_dump(values, sort_keys=False))
        done = subprocess.run(
            [program, "fleet", "rounds", "2", "--name", "fed", "-i", farm.inventory,
             "--bundle", bundle_folder, "--out", folder / "out", "--poll", "0.3",
             *(word for assignment in SET.split() for word in ("--set", assignment))],
            capture_output=True, text=True,
        )  # fmt: skip
    finally:
        farm.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    found = folder / "out" / "fed-r2" / "average" / "adapter.safetensors"
    start = dict(initial_values(Bundle.open(bundle_folder)))
    assert any(np.abs(value - start[name]).max() > 1e-4 for name, value in load_file(found).items())
    return found


def compare(ours: Path, theirs: Path) -> None:
    """Two averages are the same, but for the rounding of float32 in two orders of summing."""
    expected, found = load_file(ours), load_file(theirs)
    assert set(expected) == set(found)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
        assert found[name].dtype == value.dtype


def test_supernodes_give_the_same_average_as_fleet_rounds(
    loopback: Loopback,
    ours: Path,
    bundle_folder: Path,
    program: Path,
    pictures: Path,
    tmp_path: Path,
) -> None:
    """Two rounds of real trainings, the same seed and pictures on both roads."""
    link = loopback.spawn(
        "flower-superlink", "--disable-runtime-dependency-installation",
        "--port", str(loopback.port),
    )  # fmt: skip
    loopback.until(link, "Uvicorn running")
    for name in BOXES:
        node = loopback.spawn(
            "flower-supernode", "--superlink", f"127.0.0.1:{loopback.port}",
            "--port", str(free_port()), "--node-config",
            f'bundle="{bundle_folder}" data="{pictures / name}" program="{program}" '
            f'cache="{tmp_path / name}" budget="2GB"',
        )  # fmt: skip
        loopback.until(node, "SuperNode ID")
    average = tmp_path / "average"
    loopback.run(f'bundle="{bundle_folder}" out="{average}" rounds=2 nodes=2 set="{SET}"')
    compare(ours, average / "adapter.safetensors")


def test_the_simulation_engine_gives_it_too(
    loopback: Loopback, ours: Path, bundle_folder: Path, pictures: Path, tmp_path: Path
) -> None:
    """Two simulated nodes in one process; each takes its folder of the run's `data`."""
    link = loopback.spawn(
        "flower-superlink", "--simulation", "--disable-runtime-dependency-installation",
        "--port", str(loopback.port),
    )  # fmt: skip
    loopback.until(link, "Uvicorn running")
    average = tmp_path / "average"
    loopback.run(
        f'bundle="{bundle_folder}" out="{average}" rounds=2 nodes=2 set="{SET}" '
        f'data="{pictures}" cache="{tmp_path / "cache"}" budget="2GB"',
        "--federation-config", "num-supernodes=2",
    )  # fmt: skip
    compare(ours, average / "adapter.safetensors")


def test_no_node_outweighs_the_others_or_brings_nonsense() -> None:
    flwr_app = pytest.importorskip("flwr.app")
    from edgeladder.fleet import flower

    def reply(
        values: Any, count: float, name: str = "up", record: str = "arrays", **more: Any
    ) -> Any:
        metrics = {"num-examples": count, "zero-shot": 0.5, "tuned": 0.5, **more}
        content = flwr_app.RecordDict({
            record: flower._record({name: np.asarray(values, np.float32)}),
            "metrics": flwr_app.MetricRecord(metrics),
        })  # fmt: skip
        metadata = SimpleNamespace(src_node_id=1)
        return SimpleNamespace(content=content, metadata=metadata, has_error=lambda: False)

    strategy = flower.BoundedFedAvg({"up": (2,)})
    honest = [reply([0, 0], 10), reply([0, 0], 10)]
    nonsense = [
        reply([9, 9], 1e300), reply([9, 9], -1), reply([9, 9], float("nan")),
        reply([np.nan, 9], 10), reply([np.inf, 9], 10), reply([9, 9, 9], 10),
        reply([9, 9], 10, name="../up"), reply([3e38, 9], 10), reply([9, 9], 10, record="other"),
        reply([9, 9], 10, more=1), reply([9, 9], 10, tuned=float("nan")),
        reply([9, 9], 10, tuned=[0.5]),
    ]  # fmt: skip
    arrays, _ = strategy.aggregate_train(1, [*nonsense, *honest, reply([1, 1], 1_000_000)])
    assert arrays["up"].numpy().tolist() == pytest.approx([0.5, 0.5]), "no more than a half"
    assert strategy.aggregate_train(2, nonsense) == (None, None)
