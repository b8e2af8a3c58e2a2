"""What the boxes are and what will not work on them, from one probe each."""

from __future__ import annotations

import dataclasses
import time

from edgeladder.core.sizes import format_size, parse_size
from edgeladder.fleet.box.records import ProbeAnswer, ProbeRequest
from edgeladder.fleet.outcomes import HostResult
from edgeladder.fleet.transport import Box

CLOCK_TOLERANCE_SECONDS = 60.0  # beyond it, file times and certificates mislead
MINIMUM_DISK_BYTES = 1 << 30  # environment, a small bundle and its cache


async def examine(box: Box) -> HostResult:
    """Probe one box; problems make no failure, they are listed each with its remedy."""
    host = box.host
    before = time.time()
    found = await box.call(ProbeRequest(host.program, host.data), ProbeAnswer)
    skew = round(max(before - found.clock, found.clock - time.time(), 0.0), 3)
    budget = parse_size(host.budget) if host.budget else None
    facts = {k: v for k, v in dataclasses.asdict(found).items() if k != "clock"}
    facts["clock_skew_seconds"] = skew
    facts["wheels"] = wheels(found.architecture, found.python)
    facts["problems"] = problems(found, skew, budget)
    return HostResult(host.name, "done", facts)


def wheels(architecture: str, python: str) -> list[str]:
    """Which onnxruntime wheels exist for a box's Python on Linux.

    onnxruntime has wheels for x86-64 and aarch64 from Python 3.10 on; onnxruntime-training-cpu
    1.19.2, the last, for x86-64 up to Python 3.12.
    """
    version = tuple(int(part) for part in python.split(".")[:2])
    found = []
    if architecture in ("x86_64", "aarch64") and version >= (3, 10):
        found.append("onnxruntime")
    if architecture == "x86_64" and (3, 8) <= version <= (3, 12):
        found.append("onnxruntime-training-cpu")
    return found


def problems(box: ProbeAnswer, skew_seconds: float, budget_bytes: int | None) -> list[str]:
    """Everything that will hinder a run, in words, each with what to do."""
    found = []
    if "onnxruntime" not in wheels(box.architecture, box.python):
        found.append(
            f"no onnxruntime wheel for Python {box.python} on {box.architecture}: "
            "a 64-bit system with Python 3.10 or later has one; name it as `python`"
        )
    if not box.venv:
        found.append("no venv module: apt install python3-venv")
    if not box.writable:
        found.append("its root folder cannot be written: choose another `root`")
    if box.free_disk_bytes < MINIMUM_DISK_BYTES:
        found.append(f"only {format_size(box.free_disk_bytes)} of disk free")
    if skew_seconds > CLOCK_TOLERANCE_SECONDS:
        found.append(f"its clock is {skew_seconds:.0f} s off: enable NTP")
    if box.fence.startswith("none"):
        found.append(f"no kernel limit for budgets, {box.fence}")
    memory = box.memory_bytes
    if budget_bytes and memory and budget_bytes > memory:
        found.append(
            f"budget {format_size(budget_bytes)} is more than its {format_size(memory)} of memory"
        )
    if not box.installed.get("edgeladder"):
        found.append("edgeladder is not installed: `edgeladder fleet install`")
    if box.data is False:
        found.append("no pictures at its `data`")
    return found
