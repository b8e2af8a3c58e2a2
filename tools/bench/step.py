"""Time and memory of one training step: our graphs, onnxruntime-training, torch eager and compiled.

    python tools/bench/step.py                               # 32 pictures x 100 classes
    python tools/bench/step.py --size 256x1000 --chunks 8,16,32,64,128,256
    python tools/bench/step.py --stock-python DEVICE/bin/python --training-python ORTT/bin/python

The last is how to measure memory: where torch is installed onnxruntime-training imports it.

Runs in the host environment. The ladder is the reference of the runtime notes: 12 rungs of width
96 over ViT-B/16's taps (5 x 768 of a picture, 3 x 512 of a class), 4 prompts, AdamW with
clipping. Every contender is a process of its own, so that peaks are its own; they take turns, in
an order that changes from round to round, so that a busy machine is busy for all of them.
A chunked step is measured with the second forward pass (chunk) and with activations held between
the passes (held); lean is recompute as the plan has it under a tight budget, without onnxruntime's
arena, lean8 with 8-bit moments too. Times are medians; peaks are VmHWM; inputs are in memory from
the start and counted.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
IMAGE_TOKENS, IMAGE_WIDTH, TEXT_TOKENS, TEXT_WIDTH, DIM = 5, 768, 3, 512, 512
RUNGS, WIDTH, SCALE, RATE = 12, 96, 100.0, 1e-3
WORKER = Path(__file__).resolve().parent / "step_worker.py"


def reference_ladder() -> Any:
    """The reference ladder, seed 0."""
    import torch

    from edgeladder.core.config import LadderConfig
    from edgeladder.core.manifest import TapRecord
    from edgeladder.host.model.ladder import Ladder

    torch.manual_seed(0)
    shapes = {"image": (IMAGE_TOKENS, IMAGE_WIDTH), "text": (TEXT_TOKENS, TEXT_WIDTH)}
    taps = {
        side: [TapRecord(name=f"{side}{i}", block=i, tokens=t, width=w) for i in range(RUNGS)]
        for side, (t, w) in shapes.items()
    }
    return Ladder(LadderConfig(width=WIDTH), taps["image"], taps["text"], DIM)


def write_graphs(folder: Path) -> dict[str, Any]:
    """All graphs of the ladder, as an export writes them; what it took and what came of it."""
    import onnx

    from edgeladder.core.config import TrainConfig
    from edgeladder.host.compile import training_artifacts as ort_training
    from edgeladder.host.compile.artifact import write_ladder

    ladder = reference_ladder()
    with_training = ort_training.available()
    marks: list[tuple[str, float]] = []
    record = write_ladder(
        ladder,
        SCALE,
        folder,
        train=TrainConfig(),
        with_ort_training=with_training,
        progress=lambda note: marks.append((note, time.perf_counter())),
    )
    end = time.perf_counter()
    training = next((at for note, at in marks if "ort_training" in note), end)
    from edgeladder.core.records import compact_json

    (folder / "parts.json").write_text(compact_json(record))
    nodes = {name: graph.nodes for name, graph in record.graphs.items()}
    if with_training:
        model = onnx.load(str(folder / record.ort_training["training_model"]))
        nodes["onnxruntime-training"] = len(model.graph.node)
    return {
        "parameters": sum(p.numel() for p in ladder.parameters()),
        "tensors": len(record.parameters),
        "export_seconds": training - marks[0][1],  # ours, from the traced module on
        "ort_training_export_seconds": end - training if with_training else None,
        "nodes": nodes,
    }


def flops(folder: Path, batch: int, classes: int) -> int:
    """Floating-point operations in the products of the fused graph."""
    import onnx

    from edgeladder.host.compile.extent import evaluate
    from edgeladder.host.compile.graph import Graph

    graph = Graph.from_onnx(onnx.load(str(folder / "ladder" / "fused.onnx")))
    sizes, total = {"B": batch, "C": classes}, 0
    for node in graph.nodes:
        if node.op in ("MatMul", "Gemm", "FusedMatMul"):
            values = 1  # of the left operand: batch x rows x inner, however it lies
            for size in evaluate(graph.shapes[node.inputs[0]], sizes):
                values *= size
            total += 2 * values * evaluate(graph.shapes[node.outputs[0]], sizes)[-1]
    return total


def sgemm_peak(threads: int) -> float:
    """Operations per second of a large product in onnxruntime's own kernel."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    size = 2048
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [size, size]) for n in "xyz"]
    node = helper.make_node("MatMul", ["x", "y"], ["z"])
    graph = helper.make_graph([node], "sgemm", info[:2], info[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    values = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        session.run(None, {"x": values[0], "y": values[1]})
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best


class Contender:
    """A worker process that runs steps when told to."""

    def __init__(self, name: str, python: str, folder: Path, size: str, threads: int):
        self.name, self.seconds, self.without_optimizer = name, list[float](), list[float]()
        self.error: str | None = None
        self.report: dict[str, Any] = {}
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [python, str(WORKER), name, str(folder), size, str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.answer()  # ready, warmed up

    def answer(self) -> dict[str, Any]:
        """The worker's next line."""
        assert self.process.stdout is not None and self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            self.error = (self.process.stderr.read().strip().splitlines() or ["died"])[-1]
            return {}
        return dict(json.loads(line))

    def ask(self, command: str) -> dict[str, Any]:
        """Send a command and wait."""
        if self.error is not None:
            return {}
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self.answer()

    def steps(self, count: int) -> None:
        """Time `count` steps."""
        found = self.ask(f"run {count}")
        self.seconds += found.get("seconds", [])
        self.without_optimizer += found.get("gradient_seconds", [])

    def finish(self) -> None:
        """Take its memory figures and end it."""
        self.report = self.ask("end")
        self.process.wait(timeout=60)


def compete(args: argparse.Namespace, folder: Path, size: str) -> dict[str, Any]:
    """All contenders at one size."""
    names = ["stock-fused", "stock-recompute", "stock-lean", "stock-lean8"]
    names += [f"stock-{way}-{chunk}" for chunk in args.chunks for way in ("chunk", "held")]
    pythons = dict.fromkeys(names, args.stock_python)
    if (folder / "ladder" / "ort_training").is_dir():
        pythons["ort-training"] = args.training_python
    if not args.no_torch:
        pythons |= {"torch-eager": sys.executable, "torch-compile": sys.executable}
    contenders = []
    for name, python in pythons.items():
        print(f"  starting {name}", file=sys.stderr)
        contenders.append(Contender(name, python, folder, size, args.threads))
    order = random.Random(0)
    for _ in range(args.rounds):
        order.shuffle(contenders)
        for contender in contenders:
            contender.steps(args.steps)
    results: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        contender.finish()
        if contender.error is not None:
            results[contender.name] = {"error": contender.error}
            continue
        results[contender.name] = {
            "ms": 1e3 * statistics.median(contender.seconds),
            "fastest_ms": 1e3 * min(contender.seconds),
            **contender.report,
        }
        if contender.without_optimizer:
            results[contender.name]["gradient_ms"] = 1e3 * statistics.median(
                contender.without_optimizer
            )
    ordered = {name: results[name] for name in pythons}
    return {"flops": flops(folder, *(int(s) for s in size.split("x"))), "contenders": ordered}


def table(size: str, found: dict[str, Any], peak: float) -> str:
    """Results of one size as markdown."""
    rows = found["contenders"]
    base = rows.get("ort-training", {})
    lines = [
        f"{size.replace('x', ' pictures x ')} classes, {found['flops'] / 1e9:.1f} GFLOP",
        "| | ms | x ort-training | share of sgemm peak | peak MB | x ort-training | inputs MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        if "error" in row:
            lines.append(f"| {name} | failed: {row['error']} |")
            continue

        def ratio(key: str, row: dict[str, Any] = row) -> str:
            return f"{row[key] / base[key]:.2f}" if key in base else ""

        gradient = row.get("gradient_ms")
        share = f"{found['flops'] / (gradient / 1e3) / peak:.0%}" if gradient else ""
        lines.append(
            f"| {name} | {row['ms']:.1f} | {ratio('ms')} | {share} | {row['peak_mb']:.0f} | "
            f"{ratio('peak_mb')} | {row['input_mb']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run every contender in turns; print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", help="pictures x classes; default 32x100")
    parser.add_argument("--chunks", default="8,32", help="of the chunked step")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="per round and contender")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stock-python", default=sys.executable)
    parser.add_argument("--training-python", default=sys.executable)
    parser.add_argument("--no-torch", action="store_true", help="leave torch out: it compiles long")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    args.chunks = [int(chunk) for chunk in args.chunks.split(",") if chunk]
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("  writing graphs", file=sys.stderr)
        result: dict[str, Any] = {"threads": args.threads, "load": os.getloadavg()[0]}
        result |= write_graphs(folder)
        peak = sgemm_peak(args.threads)
        result |= {"sgemm_gflops": peak / 1e9, "sizes": {}}
        for size in args.size or ["32x100"]:
            result["sizes"][size] = compete(args, folder, size)
    head = SimpleNamespace(**result)
    print(
        f"{head.parameters / 1e6:.2f} M parameters in {head.tensors} tensors; export "
        f"{head.export_seconds:.1f} s; nodes {head.nodes}; sgemm {head.sgemm_gflops:.0f} GFLOP/s"
    )
    for size, found in result["sizes"].items():
        print(f"\n{table(size, found, peak)}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
