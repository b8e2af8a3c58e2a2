#!/usr/bin/env python
"""Where the time of precompute goes: a picture's way from its file to the cache, part by part.

    python -m tools.bench.tower_profile --bundle B16 --batch 8 --out tower-profile.csv

Everything is measured in one process, the tower's operators by onnxruntime's own profile of each
segment, one open at a time. `products` are matrix products with weights and the stem's
convolution; `attention` the products of activations, softmax and what turns them; `rounding` what
int8 needs beside its products. The last lines set the sum beside the products: as they were
measured here, and as they would be at the machine's peak (a square product of 1,024, in float32
or in int8 as the tower's are).
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.bundle import Bundle
from edgeladder.core.onnx_graph import Graph
from edgeladder.core.protobuf import FLOAT, UINT8
from edgeladder.runtime.cache.store import ActivationCache, sample_key
from edgeladder.runtime.pictures.decode import decode_square, normalize
from edgeladder.runtime.session import open_plain
from edgeladder.runtime.towers.runner import SOURCE_NAMES, wanted_outputs
from tools.bench.int8 import draw_pictures

PICTURES, RUNS = 8, 12
_PEAK = 1024  # rows, columns and depth of the product that stands for the machine's peak
_PRODUCTS = ("Conv", "MatMulIntegerToFloat", "MatMulInteger", "Gemm", "FusedGemm")
_ATTENTION = ("MultiHeadAttention", "FusedMatMul", "Softmax", "Split", "Transpose")
_PARTS = {
    **dict.fromkeys(_PRODUCTS, "products"),
    **dict.fromkeys(_ATTENTION, "attention"),
    **dict.fromkeys(("Gelu", "QuickGelu", "Erf", "Sigmoid", "BiasGelu", "FastGelu"), "activation"),
    **dict.fromkeys(("LayerNormalization", "SkipLayerNormalization"), "norms"),
    **dict.fromkeys(("Abs", "ReduceMax", "QuantizeLinear", "Max", "Expand", "Shape"), "rounding"),
}  # fmt: skip


def operators(path: Path, feeds: dict[str, np.ndarray], threads: int, folder: Path) -> Any:
    """Seconds of a run by part, seconds of opening, and the outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.enable_mem_pattern = False
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / path.stem)
    began = time.process_time()
    session = onnxruntime.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["BiasGeluFusion", "SkipLayerNormFusion"],
    )
    opening = time.process_time() - began
    names = [item.name for item in session.get_outputs()]
    for _ in range(RUNS):
        found = dict(zip(names, session.run(names, feeds), strict=True))
    taken: dict[tuple[str, str], list[int]] = defaultdict(list)
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["name"], _part(event)].append(event["dur"])
    parts: dict[str, float] = defaultdict(float)
    for (_, part), durations in taken.items():
        parts[part] += min(durations[1:]) / 1e6  # other work on the machine only adds
    return parts, opening, found


def _part(event: dict[str, Any]) -> str:
    """The part of the table that a node counts for."""
    operator = event["args"]["op_name"]
    if operator == "MatMul":
        shapes = [next(iter(item.values())) for item in event["args"]["input_type_shape"]]
        weights = len(shapes) == 1 or len(shapes[-1]) == 2  # noqa: PLR2004  (packed ones are no input)
        return "products" if weights else "attention"
    return _PARTS.get(operator, "sums and scales")


def tower(bundle: Bundle, pixels: np.ndarray, threads: int, folder: Path) -> Any:
    """Seconds a picture by part, and the wanted outputs."""
    record = bundle.manifest.image
    wanted = wanted_outputs(record, "image")
    values = {SOURCE_NAMES["image"]: pixels}
    parts: dict[str, float] = defaultdict(float)
    for segment in record.segments:
        feeds = {item.name: values[item.name] for item in segment.inputs}
        found, opening, outputs = operators(bundle.path(segment.file), feeds, threads, folder)
        for name, seconds in found.items():
            parts[name] += seconds / len(pixels)
        parts["opening, of a group of 128"] += opening / 128
        values.update(outputs)
    return parts, {handed: values[name] for name, handed in wanted.items()}


def edges(bundle: Bundle, threads: int, batch: int) -> list[tuple[str, float]]:
    """Seconds a picture, part by part."""
    preprocess = bundle.manifest.preprocess
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw_pictures(folder / "pictures", PICTURES)
        files = [path.read_bytes() for path in sorted((folder / "pictures").rglob("*.jpg"))]
        taken, decoded = [], []
        for content in files:
            began = time.perf_counter()
            decoded.append(decode_square(content, preprocess))
            taken.append(time.perf_counter() - began)
        decoding = min(taken)
        squares = np.stack(decoded)
        began = time.perf_counter()
        pixels = normalize(squares, preprocess)
        normalising = (time.perf_counter() - began) / len(files)
        pixels = np.resize(pixels, (batch, *pixels.shape[1:]))
        parts, outputs = tower(bundle, pixels, threads, folder)
        cache = ActivationCache.open(folder / "cache", bundle, "image", "fp16", writable=True)
        began = time.process_time()
        cache.put([sample_key(bytes([n]) * 32) for n in range(batch)], outputs)
        cache.close()
        writing = (time.process_time() - began) / batch
    return [
        ("decoding and resizing (640 x 480 JPEG)", decoding),
        ("normalising", normalising),
        *sorted(parts.items(), key=lambda item: -item[1]),
        ("cache", writing),
    ]


def peak_seconds(int8: bool, threads: int) -> float:
    """Seconds of a multiply-add in a large product."""
    random = np.random.default_rng(0)
    graph = Graph(opsets={"": 18, "com.microsoft": 1})
    if int8:
        weight = random.integers(-127, 128, (_PEAK, _PEAK)).astype(np.int8)
        given = random.integers(0, 256, (_PEAK, _PEAK)).astype(np.uint8)
        zero = graph.constant("zero", np.array(128, np.uint8))
        graph.add("MatMulInteger", ["x", graph.constant("w", weight), zero], "y")
        graph.declare("x", UINT8, [_PEAK, _PEAK], out=False)
        graph.declare("y", 6, [_PEAK, _PEAK], out=True)  # int32
    else:
        weight, given = random.standard_normal((2, _PEAK, _PEAK)).astype(np.float32)
        graph.add("MatMul", ["x", graph.constant("w", weight)], "y")
        graph.declare("x", FLOAT, [_PEAK, _PEAK], out=False)
        graph.declare("y", FLOAT, [_PEAK, _PEAK], out=True)
    session = open_plain(graph.serialized(), threads)
    taken = []
    for _ in range(2 * RUNS):
        began = time.perf_counter()
        session.run(None, {"x": given})
        taken.append(time.perf_counter() - began)
    return min(taken) / _PEAK**3


def multiply_adds(bundle: Bundle) -> float:
    """Of a picture's products with weights: weights times the rows that they meet."""
    record, total = bundle.manifest.image, 0.0
    for segment in record.segments:
        rows = segment.inputs[0].shape[0] if len(segment.inputs[0].shape) == 2 else 1  # noqa: PLR2004
        width = {"int8": 1.0}.get(next((p.arithmetic for p in segment.products), ""), 4.0)
        cells = [item.shape for item in segment.outputs if len(item.shape) == 2]  # noqa: PLR2004
        if segment is record.segments[0] and cells:
            rows = cells[0][0] - 1
        total += segment.weight_bytes / width * rows
    return total


def main() -> int:
    """Measure, print a table, keep its rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="CSV to append to")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle, verify=False)
    rows = edges(bundle, options.threads, options.batch)
    int8 = bundle.manifest.image.int8 is not None
    total, products = sum(s for _, s in rows), dict(rows)["products"]
    at_peak = multiply_adds(bundle) * peak_seconds(int8, options.threads)
    rows += [("sum", total), ("products at the machine's peak", at_peak)]
    print("| part | ms a picture | share |\n|---|---|---|")
    for part, seconds in rows:
        print(f"| {part} | {1e3 * seconds:.2f} | {seconds / total:.1%} |")
    print(f"\nsum / products: {total / products:.2f}; at the machine's peak: {total / at_peak:.2f}")
    if options.out:
        fresh = not options.out.exists()
        with options.out.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if fresh:
                writer.writerow(("bundle", "arithmetic", "batch", "part", "ms"))
            for part, seconds in rows:
                name = options.bundle.name, "int8" if int8 else "float32", options.batch
                writer.writerow((*name, part, round(1e3 * seconds, 3)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
