"""The camera's process as `watch` has it: started, listened to, started again, ended."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from edgeladder.core.errors import ConfigError, DataError
from edgeladder.core.printable import one_line
from edgeladder.core.records import to_json
from edgeladder.jobs.child import with_package
from edgeladder.serve.camera import Grab, is_device, is_live

CAMERA_BYTES = 160_000_000  # of the budget: FFmpeg, and frames of 1080p on their way (104 measured)
_SLACK_BYTES = 40_000_000  # of address space that may be written and is not resident
_MOST_WAITING = 20  # frames
_AGAIN_SECONDS = 5.0  # after a process that died
_END_SECONDS = 2.0


class Camera:
    """A source whose frames appear in a folder. Use it as a context manager."""

    def __init__(self, source: str, folder: Path, every_seconds: float, log: Callable[[str], None]):
        """Nothing is opened yet.

        Raises:
            ConfigError: PyAV is not installed, or there is no such file or device.
        """
        if importlib.util.find_spec("av") is None:
            raise ConfigError(
                "a camera needs av (PyAV), which is not installed here",
                where=sys.prefix,
                remedy="pip install 'edgeladder[camera]'",
            )
        if (is_device(source) or not is_live(source)) and not Path(source).exists():
            raise ConfigError(
                "no such camera", where=named(source), remedy="name a device, a file or an address"
            )
        self._source, self._log = source, log
        self._told = Grab(
            source=source,
            folder=str(folder.resolve()),
            every_seconds=every_seconds,
            most_waiting=_MOST_WAITING,
            limit_bytes=CAMERA_BYTES + _SLACK_BYTES,
            parent=os.getpid(),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._again_at = 0.0
        self._said = ""
        self.ended = False  # a file, at its end

    def __enter__(self) -> Camera:
        self.look()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
            self._process.kill()
            self._process.wait()

    def look(self) -> None:
        """Start the process, where it is time to.

        Raises:
            DataError: a file that is no video.
        """
        if self.ended or time.monotonic() < self._again_at:
            return
        if self._process is None:
            self._start()
            return
        code = self._process.poll()
        if code is None:
            return
        self._process = None
        if not is_live(self._source):
            if code:
                raise DataError(
                    f"no video can be read from it: {self._said or f'code {code}'}",
                    where=named(self._source),
                    remedy="name a file that FFmpeg opens",
                )
            self.ended = True
            return
        self._log(f"the camera's process ended with code {code}; another one is started")
        self._again_at = time.monotonic() + _AGAIN_SECONDS

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "edgeladder.serve.camera"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=with_package({**os.environ, "MALLOC_ARENA_MAX": "2"}),
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write((json.dumps(to_json(self._told)) + "\n").encode())
            self._process.stdin.close()
        threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True).start()

    def _listen(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                said = line.decode("utf-8", "replace").strip().replace(self._source, "it")
                if said:
                    self._said = said
                    self._log(f"camera: {one_line(said)[:300]}")


def named(source: str) -> str:
    """A source as it may be shown: without a password."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"
