"""Commands for a program that is large itself: a bare supervisor in a process of its own does them.

A notebook with a few libraries holds hundreds of megabytes, which are nobody's business but its
own: the budget bounds the supervisor that is started here, and all that it starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO, Any, Literal

from edgeladder.core.errors import EdgeLadderError, Interrupted
from edgeladder.core.events import Failed
from edgeladder.core.inference import InferenceRequest
from edgeladder.core.records import from_json, to_json
from edgeladder.core.request import TrainRequest
from edgeladder.jobs.child import with_package

Command = Literal["plan", "precompute", "train", "predict", "evaluate", "deploy"]
Progress = Callable[..., None]  # (phase, done, total, note, used_bytes, budget_bytes)

_TAIL_BYTES = 2000


def call(
    command: Command,
    request: TrainRequest | InferenceRequest,
    progress: Progress | None = None,
) -> Any:
    """Do a command in a fresh process tree; the calling process does not count.

    Ctrl-C (a notebook's "interrupt") is passed on: a training writes a checkpoint first.

    Args:
        command: what to do.
        request: as the supervisor of that command takes it.
        progress: told of phases, from this thread.

    Returns:
        The command's JSON values.

    Raises:
        EdgeLadderError: as the command itself raises; Interrupted after Ctrl-C.
    """
    told = {"json": True, "events": True, "command": command, "request": to_json(request)}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeladder.jobs", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=with_package(os.environ),
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        )
        assert process.stdin and process.stdout
        with process, contextlib.ExitStack() as stack:
            stack.callback(_end, process)
            with contextlib.suppress(BrokenPipeError):  # it has ended: its code says why
                process.stdin.write(json.dumps(told).encode())
                process.stdin.close()
            answer = _listen(process, process.stdout, progress)
        if answer is None:
            raise _silent(command, process.returncode, said)
    if "error" in answer:
        raise from_json(Failed, answer["error"], where="the supervisor").error()
    return answer["result"]


def _listen(
    process: subprocess.Popen[bytes], lines: IO[bytes], progress: Progress | None
) -> dict[str, Any] | None:
    """The answer, told of progress until it comes; None where none came."""
    answer: dict[str, Any] | None = None
    stopping = False
    while True:
        try:
            line = lines.readline()
            if not line:
                return answer
            values = json.loads(line)
            if "progress" not in values:
                answer = values
            elif progress is not None and not stopping:
                progress(*values["progress"])
        except KeyboardInterrupt:
            if stopping:  # a second one: at once
                raise
            stopping = True
            process.send_signal(signal.SIGINT)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing behind; its workers end with their supervisor."""
    if process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    if process.poll() is None:
        process.kill()


def _silent(command: str, code: int, said: IO[bytes]) -> EdgeLadderError:
    if code == -signal.SIGINT:
        return Interrupted(f"{command} was stopped before it began", remedy="call it again")
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - _TAIL_BYTES))
    lines = said.read().decode("utf-8", "replace").strip().splitlines() or ["no message"]
    return EdgeLadderError(
        f"the supervisor of {command} ended with code {code}: {lines[-1]}",
        remedy="run the same command in a terminal, with -v, to see more",
    )
