"""Stands in for `edgeladder` on a box where the fleet is tested.

The same options, files and exit codes, no learning. A box takes it for its own only where somebody
laid it there by hand: no request of the fleet can. What a box does wrong is read from
`~/behaviour.json`.

    {"steps": 5, "step_seconds": 0.01, "pictures": 10, "shift": 1.0,
     "nan": false, "far": 1.0, "stray": false, "exit": 0, "link": null, "extra_tensor": null,
     "scripts": {"JOB": "a shell script to run in the job's folder", "JOB:resume": "..."}}
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

DEFAULTS = {"steps": 5, "step_seconds": 0.01, "pictures": 10, "shift": 1.0, "far": 1.0}


def load(path: Path) -> tuple[dict[str, Any], list[float]]:
    """Header and values of a safetensors file of float32, without numpy: a quick start counts."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    body = data[8 + length :]
    return json.loads(data[8 : 8 + length]), list(struct.unpack(f"<{len(body) // 4}f", body))


def save(path: Path, header: dict[str, Any], values: list[float], extra: bytes) -> None:
    """Write what `load` reads, and extra bytes after it."""
    text = json.dumps(header).encode()
    body = struct.pack(f"<{len(values)}f", *values)
    path.write_bytes(len(text).to_bytes(8, "little") + text + body + extra)


def train(arguments: argparse.Namespace, behaviour: dict[str, Any]) -> int:
    """Leave a run directory as a training would."""
    run = Path(arguments.resume or arguments.run)
    run.mkdir(parents=True, exist_ok=True)
    bundle = Path(arguments.bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    start = Path(arguments.start) / "adapter.safetensors" if arguments.start else None
    header, values = load(start or bundle / manifest["ladder"]["initial"])
    (run / "checkpoints").mkdir(exist_ok=True)
    (run / "config.yaml").write_text("{}\n")
    mark = run / "checkpoints" / "step.json"
    done = run / "metrics.jsonl"
    first = done.read_bytes().count(b"\n") if arguments.resume and done.exists() else 0
    leave = []
    signal.signal(signal.SIGTERM, lambda *_: leave.append(130))
    with open(run / "metrics.jsonl", "a") as metrics:
        for step in range(first, behaviour["steps"]):
            time.sleep(behaviour["step_seconds"])
            record = {"kind": "step", "step": step + 1, "loss": 1 / (step + 1)}
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()  # one write: a power cut leaves whole lines
            mark.write_text(str(step + 1))
            if leave:
                return leave[0]
    print("trained", file=sys.stderr)
    values = [value + behaviour["shift"] * behaviour["far"] for value in values]
    if behaviour.get("nan"):
        values[0] = math.nan
    extra = Path(behaviour["extra_tensor"]).read_bytes() if "extra_tensor" in behaviour else b""
    if extra:
        end = 4 * len(values)
        offsets = [end, end + len(extra)]
        header[behaviour.get("extra_name", "pixels")] = {
            "dtype": "U8",
            "shape": [len(extra)],
            "data_offsets": offsets,
        }
    target = run / "adapter.safetensors"
    if behaviour.get("link"):
        target.symlink_to(behaviour["link"])
    else:
        save(target, header, values, extra)
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    (run / "adapter.json").write_text(
        json.dumps(
            {
                "schema_version": 1,
                "bundle_digest": behaviour.get("bundle_digest", digest),
                "ladder_digest": "0" * 64,
                "model": manifest["model"]["name"],
                "classes": behaviour.get("classes", ["a", "b"]),
                "head": None,
            }
        )
    )
    if behaviour.get("report"):
        (run / "report.html").write_text(behaviour["report"])
    print(
        json.dumps(
            {
                "run": str(run),
                "steps": behaviour["steps"],
                "counts": {"train": behaviour["pictures"], "test": 4, "classes": 2},
                "accuracy": {"zero_shot": 0.5, "tuned": 0.75, "split": "test"},
                "memory": {
                    "budget_bytes": 1_000_000_000,
                    "enforcement": "rlimit",
                    "phases": {"train": {"measured_peak_bytes": 200_000_000}},
                },
            }
        )
    )
    return int(behaviour.get("exit", 0))


def evaluate(arguments: argparse.Namespace, behaviour: dict[str, Any]) -> int:
    """Judge an adapter by its mean / 1000, so that a test can tell which one was judged."""
    _, values = load(Path(arguments.run) / "adapter.safetensors")
    mean = sum(values) / len(values)
    print(json.dumps({"accuracy": mean / 1000, "zero_shot_accuracy": 0.5, "count": 4}))
    return 0


def main() -> int:
    """Parse what the fleet passes on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trust-key", action="append")
    parser.add_argument("command", choices=["train", "evaluate"])
    for name in ("bundle", "data", "cache", "run", "resume", "device", "budget", "profile"):
        parser.add_argument(f"--{name}")
    for name in ("shots", "seed", "engine", "start"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--set", action="append")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    said = Path(os.environ["HOME"]) / "behaviour.json"
    behaviour = {**DEFAULTS, **(json.loads(said.read_text()) if said.exists() else {})}
    job = Path.cwd().name + (":resume" if arguments.resume else "")
    if job in behaviour.get("scripts", {}):
        os.execv("/bin/sh", ["/bin/sh", "-c", behaviour["scripts"][job]])
    return {"train": train, "evaluate": evaluate}[arguments.command](arguments, behaviour)


if __name__ == "__main__":
    sys.exit(main())
