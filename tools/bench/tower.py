"""An image tower as one graph, whole by segments, and segment by segment: speed and peak.

    python tools/bench/tower.py --bundle bundle --host-python PYTHON [--pictures 64]

Every contender runs in a process of its own over the same random pictures. The one graph, which is
what one would run without a budget, is joined from the bundle's segments by a Python that has onnx.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

MB = 1_000_000
_JOIN = """
import json, sys
from pathlib import Path
import onnx
from onnx import helper
bundle, out = Path(sys.argv[1]), Path(sys.argv[2])
tower = json.loads((bundle / "manifest.json").read_text())["image"]
nodes, weights, first = [], [], None
for number, segment in enumerate(tower["segments"]):
    model = onnx.load(str(bundle / segment["file"]))
    first = first or model
    chain = {item["name"] for item in segment["inputs"] + segment["outputs"]} | {""}
    def own(name):
        return name if name in chain else f"{number}/{name}"
    for node in model.graph.node:
        node.input[:] = [own(name) for name in node.input]
        node.output[:] = [own(name) for name in node.output]
        node.name = f"{number}/{node.name}"
        nodes.append(node)
    for tensor in model.graph.initializer:
        tensor.name = own(tensor.name)
        weights.append(tensor)
names = [tap["name"] for tap in tower["taps"]] + [tower["embedding"]]
outputs = [helper.make_tensor_value_info(name, 1, None) for name in names]
graph = helper.make_graph(nodes, "tower", first.graph.input, outputs, weights)
opsets = list(first.opset_import)
joined = helper.make_model(graph, opset_imports=opsets, ir_version=first.ir_version)
onnx.save(joined, str(out), save_as_external_data=True, location=out.name + ".data")
"""
_WAYS = (("one graph", 1), ("one graph", 8), ("whole", 4), ("segments", 1), ("segments", 2))


class Pictures:
    """Random pixels, as the image tower's samples."""

    def __init__(self, count: int, size: int):
        import numpy as np

        self.count, self.size = count, size
        self._block = np.random.default_rng(0).standard_normal((8, 3, size, size), np.float32)

    def read(self, start: int, stop: int) -> Any:
        """Pictures start to stop, (n, 3, size, size)."""
        return self._block[[index % 8 for index in range(start, stop)]]


def run(options: argparse.Namespace) -> dict[str, Any]:
    """One contender, in this process."""
    from edgeladder.budget import kernel_marks
    from edgeladder.core.bundle import Bundle
    from edgeladder.runtime.towers.runner import TowerRunner, TowerSizes

    bundle = Bundle.reopen(options.bundle)
    pictures = Pictures(options.pictures, bundle.manifest.preprocess.size)
    checks = []
    if options.way == "one graph":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options.threads
        session = onnxruntime.InferenceSession(str(options.graph), settings)
        (feed,) = (item.name for item in session.get_inputs())
        started = time.perf_counter()
        for start in range(0, options.pictures, options.batch):
            stop = min(start + options.batch, options.pictures)
            checks.append(float(session.run(None, {feed: pictures.read(start, stop)})[-1].sum()))
    else:
        started = time.perf_counter()
        sizes = TowerSizes(
            group=options.pictures,
            batch=options.batch,
            threads=options.threads,
            whole=options.way == "whole",
        )
        with tempfile.TemporaryDirectory() as folder:
            runner = TowerRunner(bundle, "image", sizes, Path(folder))
            runner.run(
                pictures, lambda _, outputs: checks.append(float(outputs["embedding"].sum()))
            )
    seconds = time.perf_counter() - started
    return {
        "pictures_per_second": options.pictures / seconds,
        "cpu_seconds": time.process_time(),
        "peak_mb": kernel_marks.high_water(os.getpid()) / MB,
        "check": sum(checks),
    }


def main() -> int:
    """Run every contender, or one that was named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--host-python", default=sys.executable, help="with onnx")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--graph", type=Path, help="the joined graph, where it is made already")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(run(options)))
        return 0
    from edgeladder.jobs.child import WORKER_ENVIRONMENT

    with tempfile.TemporaryDirectory() as folder:
        if options.graph is None:
            options.graph = Path(folder) / "tower.onnx"
            command = [options.host_python, "-c", _JOIN, str(options.bundle), str(options.graph)]
            subprocess.run(command, check=True)
        print(
            "| image tower | batch | pictures/s | of one graph | peak MB |\n|---|---|---|---|---|"
        )
        first: dict[str, Any] = {}
        for way, batch in _WAYS:
            command = [sys.executable, __file__, "--way", way, "--batch", str(batch)]
            command += ["--bundle", str(options.bundle), "--pictures", str(options.pictures)]
            command += ["--threads", str(options.threads), "--graph", str(options.graph)]
            ours = {} if way == "one graph" else WORKER_ENVIRONMENT
            environment = {**os.environ, **ours}
            done = subprocess.run(command, check=True, capture_output=True, env=environment)
            found = json.loads(done.stdout)
            first = first or found
            assert abs(found["check"] - first["check"]) < 0.02 * abs(first["check"]) + 1, found
            speed = found["pictures_per_second"]
            share = speed / first["pictures_per_second"]
            print(f"| {way} | {batch} | {speed:.2f} | {share:.2f} | {found['peak_mb']:.0f} |")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
