"""What the boxes are and what will not work on them, from one probe each."""

from __future__ import annotations

import time
from typing import Any

from edgeladder.core.sizes import format_size, parse_size
from edgeladder.fleet.account import HostResult
from edgeladder.fleet.transport import Box

CLOCK_TOLERANCE_SECONDS = 60.0  # beyond it, file times and certificates mislead
MINIMUM_DISK_BYTES = 1 << 30  # environment, a small bundle and its cache


async def examine(box: Box) -> HostResult:
    """Probe one box; problems make no failure, they are listed each with its remedy."""
    host = box.host
    before = time.time()
    facts = await box.call("probe", program=host.program, data=host.data)
    after = time.time()
    clock = facts.pop("clock")
    facts["clock_skew_seconds"] = round(max(before - clock, clock - after, 0.0), 3)
    facts["wheels"] = wheels(facts["architecture"], facts["python"])
    budget = parse_size(host.budget) if host.budget else None
    facts["problems"] = problems(facts, budget)
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


def problems(facts: dict[str, Any], budget_bytes: int | None) -> list[str]:
    """Everything that will hinder a run, in words, each with what to do."""
    found = []
    if "onnxruntime" not in facts["wheels"]:
        found.append(
            f"no onnxruntime wheel for Python {facts['python']} on {facts['architecture']}: "
            "a 64-bit system with Python 3.10 or later has one; name it as `python`"
        )
    if not facts["venv"]:
        found.append("no venv module: apt install python3-venv")
    if not facts["writable"]:
        found.append("its root folder cannot be written: choose another `root`")
    if facts["free_disk_bytes"] < MINIMUM_DISK_BYTES:
        found.append(f"only {format_size(facts['free_disk_bytes'])} of disk free")
    if facts["clock_skew_seconds"] > CLOCK_TOLERANCE_SECONDS:
        found.append(f"its clock is {facts['clock_skew_seconds']:.0f} s off: enable NTP")
    if facts["fence"].startswith("none"):
        found.append(f"no kernel fence for budgets, {facts['fence']}")
    memory = facts["memory_bytes"]
    if budget_bytes and memory and budget_bytes > memory:
        found.append(
            f"budget {format_size(budget_bytes)} is more than its {format_size(memory)} of memory"
        )
    if not facts["installed"].get("edgeladder"):
        found.append("edgeladder is not installed: `edgeladder fleet install`")
    if facts["data"] is False:
        found.append("no pictures at its `data`")
    return found
