"""One worker process: started behind the limit, listened to, measured, ordered about, ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgeladder.budget import kernel_marks
from edgeladder.budget.limits import MemoryLimit
from edgeladder.core.events import Event, read_event
from edgeladder.core.records import to_json

if TYPE_CHECKING:
    from edgeladder.core.orders import Order
    from edgeladder.jobs.worker_log import WorkerLog

_TAIL_BYTES = 4000
WORKER_ENVIRONMENT = {
    # fewer malloc arenas: every thread's own arena keeps freed memory from the others
    "MALLOC_ARENA_MAX": "2",
    # fixed, so that large buffers always go back to the kernel when they are freed: left alone,
    # glibc raises both to 32 MB once such a buffer was freed, and keeps what comes after it
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
}


def with_package(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a new Python finds this very package first."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = [package, *environment.get("PYTHONPATH", "").split(os.pathsep)]
    return {**environment, "PYTHONPATH": os.pathsep.join(dict.fromkeys(p for p in path if p))}


def worker_command(phase: str) -> list[str]:
    """What starts a worker of this process."""
    return [sys.executable, "-m", "edgeladder.jobs.worker", phase, str(os.getpid())]


class Child:
    """A running worker."""

    def __init__(
        self,
        phase: str,
        order: Order,
        limit: MemoryLimit,
        log: WorkerLog | None,
        lock: int | None = None,
    ):
        """Start `python -m edgeladder.jobs.worker PHASE SUPERVISOR` and hand it the order.

        Args:
            phase: plan, precompute, train or evaluate.
            order: the worker's first line of stdin.
            limit: entered between fork and exec, so that every page is charged to it.
            log: keeps what the worker writes to stderr; None keeps only its tail.
            lock: descriptor of the run's lock, which is held until the worker has ended too.
        """
        environment = with_package({**WORKER_ENVIRONMENT, **os.environ})
        self.process = subprocess.Popen(
            [*limit.prefix, *worker_command(phase)],
            pass_fds=() if lock is None else (lock,),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            preexec_fn=limit.enter,  # writes one byte or sets one limit: safe after fork
            start_new_session=True,  # Ctrl-C reaches the supervisor alone, which gives the order
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self._stdin = self.process.stdin.fileno()
        self._out = self.process.stdout.fileno()
        self._err = self.process.stderr.fileno()
        self._open = [self._out, self._err]
        self._partial = b""
        self._tail = b""
        self._log = log
        self.high_water = 0
        self._sending = threading.Lock()  # a closed descriptor's number is another file's next
        self._send(json.dumps(to_json(order)))

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self.process.pid

    def order(self, name: str) -> None:
        """Send an order; a worker that has ended no longer hears it."""
        self._send(name)

    def kill(self) -> None:
        """End the worker and what it started, at once."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def events(self, wait_seconds: float) -> list[Event] | None:
        """Events that came within `wait_seconds`; None when the worker has closed its end."""
        if not self._open:
            return None
        ready, _, _ = select.select(self._open, [], [], wait_seconds)
        found: list[Event] = []
        for descriptor in ready:
            data = os.read(descriptor, 65536)
            if not data:
                self._open.remove(descriptor)
            elif descriptor == self._err:
                self._keep(data)
            else:
                *lines, self._partial = (self._partial + data).split(b"\n")
                found += [event for event in map(self._parse, lines) if event]
        return found

    def _parse(self, line: bytes) -> Event | None:
        event = read_event(line)
        if event is None:
            self._keep(line + b"\n")  # a library that prints to stdout
        return event

    def _keep(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-_TAIL_BYTES:]
        if self._log is not None:
            self._log.said(data)
        elif os.environ.get("EDGELADDER_TRACEBACK") == "1":
            os.write(2, data)

    def tail(self) -> str:
        """The last that the worker wrote to stderr."""
        return self._tail.decode("utf-8", "replace").strip()

    def mark(self) -> int:
        """Read the kernel's high-water mark of the worker; the most seen so far."""
        self.high_water = max(self.high_water, kernel_marks.high_water(self.process.pid))
        return self.high_water

    def end(self, grace_seconds: float = 5.0) -> int:
        """Wait for the exit, close the pipes; the return code, negative for a signal."""
        try:
            code = self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self.process.wait()
        # whatever the worker started must not outlive it
        self.kill()
        with self._sending:
            for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                if stream:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        return code

    def _send(self, line: str) -> None:
        data = (line + "\n").encode()
        deadline = time.monotonic() + 10
        with self._sending, contextlib.suppress(BrokenPipeError):
            if self.process.stdin is None or self.process.stdin.closed:
                return
            while data and time.monotonic() < deadline:
                data = data[os.write(self._stdin, data) :]
