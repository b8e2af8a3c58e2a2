"""What a process costs before it does any work: measured once per machine and remembered.

The baseline depends on the interpreter, numpy and onnxruntime builds, the C library and the page
size, so it is measured rather than assumed: a fresh process imports what a worker imports, opens
a one-node session, runs it and reads its own marks. The result is kept under the user's cache
folder, keyed by versions, and measured again when one of them changes.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from pathlib import Path
from typing import Any

from edgeladder.budget import kernel_marks
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.orders import BaselineOrder, Outcome
from edgeladder.core.plan import MachineBaseline
from edgeladder.core.trusted_keys import pinned_keys
from edgeladder.core.user_cache import baseline_path
from edgeladder.jobs.control import Control

_VERIFIES = "cryptography.hazmat.primitives.asymmetric.ed25519"
_VERSION = 5  # of what is measured
_READY, _SETTLED = "ready", "settled"
_DISTRIBUTIONS = ("numpy", "onnxruntime", "onnxruntime-training-cpu", "onnxruntime-training")


def measure(order: BaselineOrder, control: Control) -> tuple[Outcome, MachineBaseline]:
    """The baseline worker: inside the plan worker the measuring would add to its own memory."""
    return "done", machine_baseline()


def machine_baseline(folder: Path | None = None) -> MachineBaseline:
    """The baseline of this machine, measured now if it was not before.

    Args:
        folder: where to remember it; default `$XDG_CACHE_HOME/edgeladder`.

    Raises:
        EdgeLadderError: the measuring process failed.
    """
    found = remembered_baseline(folder)
    if found is not None:
        return found
    baseline = measure_baseline()
    path = baseline_path(folder)
    try:
        from edgeladder.core.files import write_json

        write_json(path, {**_remembered(path), _key(): baseline.to_json()})
    except (OSError, EdgeLadderError):
        pass  # a read-only home: measured again next time
    return baseline


def remembered_baseline(folder: Path | None = None) -> MachineBaseline | None:
    """The baseline as it was measured on this machine, with these versions; None: not yet."""
    values = _remembered(baseline_path(folder)).get(_key())
    if not isinstance(values, dict) or not all(type(item) is int for item in values.values()):
        return None  # nothing, or nothing of ours
    try:
        return MachineBaseline.from_json(values)
    except TypeError:
        return None  # written by another version


def _remembered(path: Path) -> dict[str, Any]:
    from edgeladder.core.files import read_json

    try:
        known = read_json(path)
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def measure_baseline() -> MachineBaseline:
    """Measure in fresh processes (about a second)."""
    supervisor = _measured("supervisor")
    worker = _measured("worker")
    pictures = _measured("pictures")
    training = _measured("training")
    return MachineBaseline(
        supervisor_bytes=supervisor["private"],
        worker_bytes=worker["high_water"],
        settled_bytes=worker["settled"],
        pictures_bytes=max(0, pictures["high_water"] - worker["high_water"]),
        training_bytes=max(0, training["high_water"] - worker["high_water"]),
        file_bytes=worker["file"],
        data_slack_bytes=worker["data"] - (worker["resident"] - worker["file"]),
    )


def _key() -> str:
    import platform
    from importlib import metadata

    parts = [f"baseline {_VERSION}", platform.machine(), platform.python_version(), sys.prefix]
    parts += list(platform.libc_ver())
    parts += ["pinned"] if pinned_keys() else []
    for name in _DISTRIBUTIONS:
        try:
            parts.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return "; ".join(parts)


def _measured(kind: str) -> dict[str, int]:
    import subprocess

    from edgeladder.jobs.child import with_package  # a worker that measures nothing needs none

    environment = with_package({**os.environ, "MALLOC_ARENA_MAX": "2"})
    command = [sys.executable, "-m", "edgeladder.jobs.machine_baseline", kind]
    pipe = subprocess.PIPE
    values: dict[str, int] = {}
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        # from outside: what measures is not in what is measured
        if process.stdout.readline().strip() == _READY:
            values = _marks(process.pid)
            process.stdin.write("\n")
            process.stdin.flush()
            if process.stdout.readline().strip() == _SETTLED:
                values["settled"] = _marks(process.pid)["resident"]
        _, complaint = process.communicate()
    if "settled" not in values:
        raise EdgeLadderError(
            f"cannot measure the memory baseline: {complaint.strip().splitlines()[-1:]}",
            where=f"python -m edgeladder.jobs.machine_baseline {kind}",
            remedy="run `edgeladder doctor`",
        )
    return values


def _marks(pid: int) -> dict[str, int]:
    from edgeladder.budget import meter  # workers that only ask for what is remembered need none

    return {
        "private": meter.private(pid),
        "resident": meter.resident(pid),
        "high_water": kernel_marks.high_water(pid) or meter.resident(pid),
        "file": meter.file_bytes(pid),
        "data": meter.data_bytes(pid),
    }


def _become(kind: str) -> Any:
    """Load what a process of this kind loads; what is returned stays alive while measuring."""
    if kind == "supervisor":
        from edgeladder.jobs import supervisor

        return supervisor
    import numpy as np

    from edgeladder.core import onnx_graph, protobuf
    from edgeladder.jobs import evaluate_phase, train_phase, worker
    from edgeladder.runtime.session import open_plain

    # the smallest model that makes onnxruntime set itself up
    model = onnx_graph.one_node_model("Identity", protobuf.FLOAT, protobuf.FLOAT)
    session = open_plain(model)
    session.run(None, {"x": np.zeros(1, np.float32)})
    kept: list[Any] = [train_phase, evaluate_phase, worker, session]
    if pinned_keys():  # a signature costs 9 MB to verify; opening says where it cannot be
        with contextlib.suppress(ImportError):
            kept.append(importlib.import_module(_VERIFIES))
    if kind == "pictures":
        kept.append(importlib.import_module("edgeladder.jobs.precompute_phase"))
    if kind == "training":
        from edgeladder.runtime import engine

        if "ort-training" in engine.installed_engines():
            kept.append(importlib.import_module("edgeladder.runtime.engine.training_build"))
    return kept


def main() -> None:
    """Entry point of a process that is measured: says when it is ready, and when it has settled."""
    kept = _become(sys.argv[1])
    print(_READY, flush=True)
    sys.stdin.readline()
    from edgeladder.core.trim import release_startup_memory

    release_startup_memory()
    print(_SETTLED, flush=True)
    sys.stdin.readline()
    del kept


if __name__ == "__main__":
    main()
