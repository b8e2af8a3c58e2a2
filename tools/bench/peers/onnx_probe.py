#!/usr/bin/env python
"""An ONNX CLIP and scikit-learn's logistic regression: what needs no torch, and no EdgeLadder.

    python tools/bench/peers/onnx_probe.py --onnx clip.onnx --data data.zip --predict 32

Needs onnxruntime, scikit-learn and Pillow. `clip.onnx` and the view beside it come from
`onnx_image.py`; the data are a .zip of train/ and test/ folders of classes. Prints one JSON object
in the words of `run.py`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import time
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image
from sklearn.linear_model import LogisticRegression

_BATCH = 8
_PREDICT_BATCH = 4
_ITERATIONS = 1000  # of L-BFGS, as CLIP's paper has it (arXiv:2103.00020, 3.2)


class Tower:
    """The image tower on onnxruntime."""

    def __init__(self, path: Path, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        view = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        self.size = int(view["size"])
        self.mean, self.std = (np.array(view[name], np.float32) for name in ("mean", "std"))

    def pixels(self, content: bytes) -> np.ndarray:
        """(3, S, S): the short side to S, the middle cut out."""
        image = Image.open(io.BytesIO(content)).convert("RGB")
        scale = self.size / min(image.size)
        sides = [max(self.size, round(side * scale)) for side in image.size]
        image = image.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
        left, top = ((side - self.size) // 2 for side in sides)
        image = image.crop((left, top, left + self.size, top + self.size))
        rows = (np.asarray(image, np.float32) / 255 - self.mean) / self.std
        return np.ascontiguousarray(rows.transpose(2, 0, 1), np.float32)

    def features(self, contents: list[bytes], batch: int) -> np.ndarray:
        """(n, D) unit embeddings."""
        found = []
        for start in range(0, len(contents), batch):
            pixels = np.stack([self.pixels(c) for c in contents[start : start + batch]])
            found.append(self.session.run(None, {"pixels": pixels})[0])
        return np.concatenate(found)


def since_start() -> float:
    """Seconds that this process is old, its imports included (proc(5): stat, field 22)."""
    fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def read(data: Path, side: str) -> tuple[list[bytes], list[str]]:
    """The pictures of one side and their classes."""
    with zipfile.ZipFile(data) as archive:
        names = [n for n in archive.namelist() if n.startswith(f"{side}/") and n.count("/") == 2]
        return [archive.read(name) for name in names], [name.split("/")[1] for name in names]


def main() -> None:
    """Features, fit, predictions; what they took."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--predict", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    tower = Tower(given.onnx, given.threads)
    loading = since_start()
    loaded, busy = time.perf_counter(), time.process_time()
    contents, labels = read(given.data, "train")
    features = tower.features(contents, _BATCH)
    fitted = LogisticRegression(max_iter=_ITERATIONS).fit(features, labels)
    result = {
        "seconds": round(time.perf_counter() - loaded, 2),
        "cpu_seconds": round(time.process_time() - busy, 2),
        "load_seconds": round(loading, 2),
        "load_cpu_seconds": round(busy, 2),
    }
    tested, _ = read(given.data, "test")
    tested = (tested * given.predict)[: given.predict]
    started = time.perf_counter()
    for start in range(0, len(tested), _PREDICT_BATCH):
        part = tested[start : start + _PREDICT_BATCH]
        fitted.predict_proba(tower.features(part, _PREDICT_BATCH))
    spent = time.perf_counter() - started
    if tested:
        result["predict_images_per_second"] = round(len(tested) / spent, 3)
    result["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(result))


if __name__ == "__main__":
    main()
