"""The benchmark's ladder goes through the product's loop: what it hands over must stay a job."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

import edgeladder
from edgeladder.core.bundle import Bundle
from edgeladder.core.yaml_config import override
from tools.bench.ladder_row import train_ladder
from tools.bench.task import load_pool


def test_trains_the_shipped_ladder_on_a_task(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for index in range(8):
            pixels = draw.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / label / f"{index}.png")
    bundle = Bundle.open(Path(edgeladder.__file__).parent / "_nano" / "bundle")
    task = load_pool(bundle, tmp_path / "data", tmp_path / "cache", shots=2, seeds=1).task(2, 0)
    logits, steps = train_ladder(task, bundle, override(bundle.manifest.profile, ["train.steps=3"]))
    assert steps == 3
    assert logits.shape == (len(task.test.labels), 2)
    assert np.isfinite(logits).all()
