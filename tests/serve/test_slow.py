"""Clients that are slow on purpose, or go away: each ends for itself, the service stays up."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.serve.conftest import ROOT, Server, serving

# the same command with limits of a second, which nobody wants on the command line
HASTY = """
import sys
from dataclasses import replace
from edgeladder.serve import settings
class Limits(settings.Limits):
    def __init__(self, **told):
        super().__init__(head_seconds=0.6, body_seconds=0.8, picture_seconds=1.5, connections=12,
                         drain_seconds=3, **told)
settings.Limits = Limits
from edgeladder.cli.app import run
run()
"""


@pytest.fixture
def server(nano_run, monkeypatch):
    monkeypatch.setattr("tests.serve.conftest.COMMAND", [sys.executable, "-c", HASTY])
    with serving(nano_run) as running:
        yield running


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def rest(line: socket.socket) -> bytes:
    """What comes until the other side closes."""
    found = b""
    try:
        while data := line.recv(65536):
            found += data
    except ConnectionResetError:
        pass
    return found


def trickle(line: socket.socket, data: bytes, seconds: float) -> None:
    """A byte now and then, as slow-loris does."""
    end = time.monotonic() + seconds
    for byte in data:
        if time.monotonic() > end:
            return
        try:
            line.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(0.05)


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"


def test_slow_clients_are_closed_and_others_served(server, pictures):
    with connect(server) as silent, connect(server) as head, connect(server) as body:
        body.sendall(HEAD)
        trickle(head, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 100, 1.5)
        assert rest(silent).startswith(b"HTTP/1.1 408")
        assert rest(head).startswith(b"HTTP/1.1 408")
        answer = rest(body)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"did not come within 0.8 s" in answer
    # a second request that never ends, on a connection that has served one
    with connect(server) as line:
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /")
        trickle(line, b"x" * 100, 1.5)
        assert rest(line).startswith(b"HTTP/1.1 200")
    # more connections than may be: the others are refused, none waits for ever
    lines = [connect(server) for _ in range(40)]
    for line in lines:
        rest(line)
        line.close()
    with connect(server) as gone:  # goes away in the middle of its picture
        gone.sendall(HEAD + b"x" * 100)
    with connect(server) as noise:
        noise.sendall(os.urandom(3000) + b"\r\n\r\n")
        assert b"400" in rest(noise)
    assert server.predict(pictures[0])[0] == 200
    code, said = server.end()
    assert code == 0
    assert said.startswith("1 pictures answered in ")


def test_a_picture_that_takes_too_long_ends_the_worker_not_the_service(server, pictures):
    import psutil

    (worker,) = psutil.Process(server.process.pid).children()
    worker.suspend()
    code, body, _ = server.predict(pictures[0])
    assert code == 503
    assert "took longer than 1.5 s" in body["error"]["message"]
    assert server.predict(pictures[0])[0] in (200, 503)


def test_sigterm_answers_what_was_asked_before(server, pictures):
    import psutil

    (worker,) = psutil.Process(server.process.pid).children()
    worker.suspend()
    picture = pictures[0].read_bytes()
    with connect(server) as line:
        line.sendall(HEAD.replace(b"5000", str(len(picture)).encode()) + picture)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(ConnectionRefusedError):  # nobody new is let in
            connect(server)
        worker.resume()
        assert rest(line).startswith(b"HTTP/1.1 200")
    assert server.process.wait(20) == 0


def test_sigterm_before_it_is_ready_ends_it_as_well(nano_run):
    command = [sys.executable, "-c", "from edgeladder.cli.app import run; run()"]
    process = subprocess.Popen(
        [*command, "serve", "--run", str(nano_run), "--port", "0", "--budget", "400MB"],
        env={**os.environ, "PYTHONPATH": ROOT},
        stderr=subprocess.PIPE,
    )
    import psutil

    end = time.monotonic() + 20
    while not psutil.Process(process.pid).children() and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(20) == 0, said
