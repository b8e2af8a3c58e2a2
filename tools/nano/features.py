"""What the image teacher sees of the unlabelled pictures, kept in chunks so that work resumes."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from tools.nano.pictures import CHUNK, fetch, squares
from tools.nano.teacher import efficientnet, pooled, runtime

_BATCH = 25


def features(work: Path, limit: int, workers: int = 2) -> np.ndarray:
    """(about `limit`, 1280) float16; chunks that exist are not computed again."""
    folder = work / "features"
    folder.mkdir(parents=True, exist_ok=True)
    chunks = {start: folder / f"{start:06d}.npy" for start in range(0, limit, CHUNK)}
    missing = [start for start, path in chunks.items() if not path.is_file()]
    if missing:
        fetch(work)
        runtime(efficientnet(), work / "teacher.onnx")  # written once, for all workers
        with ProcessPoolExecutor(workers) as pool:
            for start in pool.map(_chunk, [work] * len(missing), missing):
                print(f"features: {start + CHUNK} of {limit}", flush=True)
    return np.concatenate([np.load(path) for path in chunks.values()])


def _chunk(work: Path, start: int) -> int:
    session = runtime(efficientnet(), work / "teacher.onnx", threads=1)
    part = list(squares(work, start, start + CHUNK))
    rows = [pooled(session, np.stack(part[i : i + _BATCH])) for i in range(0, len(part), _BATCH)]
    path = work / "features" / f"{start:06d}.npy"
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.save(file, np.concatenate(rows).astype(np.float16))
    partial.rename(path)
    return start
