"""A command with its process tree watched: peak memory and CPU time, by phase of EdgeLadder's."""

from __future__ import annotations

import json
import os
import resource
import shlex
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from edgeladder.core.errors import DataError

_WORKER = "edgeladder.jobs.worker"
ROOT = Path(__file__).resolve().parents[3]
_PERIOD = 0.05  # seconds between samples


@dataclass
class Measured:
    """What a command did and took.

    Bytes are resident sizes summed over the tree: pages that two processes share count twice.
    """

    command: str
    code: int = 0
    output: str = ""
    errors: str = ""
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of the whole tree
    peak_rss: int = 0
    phase_peak: dict[str, int] = field(default_factory=dict)  # while that worker ran
    phase_cpu: dict[str, float] = field(default_factory=dict)  # of those workers alone


def run_measured(command: list[str], environment: dict[str, str]) -> Measured:
    """Run a command to its end, sampling its tree 20 times a second."""
    found = Measured(shlex.join(command))
    cpu: dict[tuple[str, int], float] = {}
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)
        root = psutil.Process(process.pid)
        while process.poll() is None:
            _sample(root, found, cpu)
            time.sleep(_PERIOD)
        found.code, found.seconds = process.returncode, time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)  # of all that were waited for
        found.cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        for file in (output, errors):
            file.seek(0)
        found.output, found.errors = output.read(), errors.read()
    for (phase, _), seconds in cpu.items():
        found.phase_cpu[phase] = found.phase_cpu.get(phase, 0.0) + seconds
    return found


def _sample(root: psutil.Process, found: Measured, cpu: dict[tuple[str, int], float]) -> None:
    total, phases = 0, set()
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            with process.oneshot():
                total += process.memory_info().rss
                line, times = process.cmdline(), process.cpu_times()
        except psutil.Error:  # it ended in between
            continue
        if _WORKER in line:
            phase = line[line.index(_WORKER) + 1]
            phases.add(phase)
            cpu[phase, process.pid] = times.user + times.system
    found.peak_rss = max(found.peak_rss, total)
    for phase in phases:
        found.phase_peak[phase] = max(found.phase_peak.get(phase, 0), total)


def told(done: Measured) -> dict[str, Any]:
    """The JSON object that a command printed.

    Raises:
        DataError: it failed.
    """
    if done.code:
        raise DataError(
            f"exit code {done.code}: {done.errors[-500:]} {done.output[-2000:]}", where=done.command
        )
    found: dict[str, Any] = json.loads(done.output)
    return found


def environment() -> dict[str, str]:
    """This tree's package, one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
