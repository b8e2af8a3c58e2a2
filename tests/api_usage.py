"""The Python API as a program uses it: mypy checks it strictly, tests/jobs/test_api.py runs it"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from typing_extensions import assert_type

import edgeladder
from edgeladder.core.inference import Deployment, Evaluation
from edgeladder.core.job import Accuracy, PrecomputeResult
from edgeladder.core.plan import Plan


def usage(pictures: Path, picture: Path, folder: Path) -> list[edgeladder.Prediction]:
    """Every ability once, on few pictures."""
    told: list[str] = []

    def tell(phase: str, done: int = 0, total: int | None = None, *more: object) -> None:
        told.append(phase)

    decided = assert_type(edgeladder.plan(pictures, bundle="nano", budget="200MB"), Plan)
    assert decided.fits and decided.minimum_budget_bytes < 200_000_000
    cache = folder / "cache"
    filled = edgeladder.precompute(
        pictures, bundle="nano", cache=cache, budget=200_000_000, progress=tell
    )
    assert_type(filled, PrecomputeResult)
    assert filled.new and "precompute" in told
    run = edgeladder.train(
        pictures, bundle="nano", cache=cache, run=folder / "run", budget="200MB", workers=1,
        settings={"train.steps": 4}, seed=3, progress=tell,
    )  # fmt: skip
    assert_type(run, edgeladder.Run)
    assert_type(run.accuracy, Accuracy)
    assert run.result.cache.new == 0 and run.result.seed == 3
    assert max(p.measured_peak_bytes for p in run.memory.phases.values()) <= 200_000_000
    assert assert_type(run.report(), Path).is_file()
    found = assert_type(edgeladder.load(run.folder).evaluate(progress=False), Evaluation)
    assert found.accuracy == run.accuracy.tuned
    deployed = run.deploy(folder / "model.onnx")
    assert assert_type(deployed, Deployment).difference < 1e-3
    sized = run.deploy(folder / "any.onnx", include_resize=True, portable=True)
    assert sized.resize_difference is not None and sized.resize_difference <= 1
    index = run.deploy(folder / "index.onnx", output="embedding", include_resize=True)
    assert index.class_embeddings is not None and index.class_embeddings.shape[0] == 2
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    return run.predict([str(picture), picture, image, np.asarray(image)], top=2, budget="200MB")
