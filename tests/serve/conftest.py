"""A real service in a process of its own, on the embedded nano model."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

import edgeladder
from edgeladder.core.bundle import Bundle
from edgeladder.runtime.adapter import save_adapter
from tests.conftest import make_pictures
from tests.runtime.infer.conftest import an_adapter

NANO = Path(edgeladder.__file__).parent / "_nano"
COMMAND = [sys.executable, "-c", "from edgeladder.cli.app import run; run()"]
ROOT = str(Path(__file__).resolve().parents[2])


def make_run(folder: Path) -> Path:
    """A run on the embedded nano model."""
    save_adapter(folder, an_adapter(Bundle.open(NANO / "bundle")))
    request = {"bundle": str(NANO / "bundle"), "data": str(NANO / "pictures.zip")}
    (folder / "config.yaml").write_text(yaml.safe_dump({"request": request}))
    return folder


@pytest.fixture(scope="session")
def nano_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("nano"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = make_pictures(tmp_path_factory.mktemp("pictures") / "p", count=4)
    return sorted(folder.rglob("*.png"))


class Running:
    """A command that stays, with what it says on stderr."""

    def __init__(self, *words: str, environment: dict[str, str] | None = None):
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ROOT, **(environment or {})},
        )
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self.lines.append("")
            self._more.notify_all()

    def says(self, start: str, count: int = 1, seconds: float = 60) -> str:
        """Wait for the line number `count` that begins so."""

        def found() -> list[str]:
            return [line for line in self.lines if line.startswith(start)]

        with self._more:
            self._more.wait_for(lambda: len(found()) >= count or "" in self.lines, seconds)
            assert len(found()) >= count, self.lines
            return found()[count - 1]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Signal it; its exit code and stdout."""
        self.process.send_signal(number)
        out = self.process.stdout.read()
        self._thread.join(30)
        return self.process.wait(30), out

    def stop(self) -> None:
        """Whatever it does: end it, and close what leads to it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._thread.join(30)
        self.process.stdout.close()
        self.process.stderr.close()


class Server(Running):
    """`edgeladder serve`, and a client of it."""

    def __init__(self, run: Path, *words: str, environment: dict[str, str] | None = None):
        super().__init__(
            "serve", "--run", str(run), "--port", "0", "--budget", "400MB", *words,
            environment=environment,
        )  # fmt: skip
        self.url = self.says("listening on ").split()[-1]
        self.port = int(self.url.rstrip("/").rpartition(":")[2])

    def ask(
        self, method: str, path: str, body=None, **headers: str
    ) -> tuple[int, dict | str, dict[str, str]]:
        """Status, JSON (or text) and headers; header names are written with _ for -."""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        client.request(method, path, body, named)
        answer = client.getresponse()
        content = answer.read().decode()
        client.close()
        kind = answer.headers.get("content-type", "")
        found = json.loads(content) if kind.startswith("application/json") else content
        return answer.status, found, {k.lower(): v for k, v in answer.headers.items()}

    def predict(self, picture: Path, query: str = "", **headers: str):
        return self.ask("POST", "/predict" + query, picture.read_bytes(), **headers)


@contextmanager
def serving(run: Path, *words: str, **more) -> Iterator[Server]:
    server = Server(run, *words, **more)
    try:
        yield server
    finally:
        server.stop()
