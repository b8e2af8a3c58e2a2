"""A run on the tiny bundle: untrained towers, a ladder moved away from zero-shot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from edgeladder.core.bundle import Bundle
from edgeladder.core.initial import initial_values
from edgeladder.runtime.adapter import Adapter, adapter_of, save_adapter

CLASSES = ["class0", "class1", "class2"]


def an_adapter(bundle: Bundle, seed: int = 0) -> Adapter:
    """An adapter with random parameters, so that tuned differs from zero-shot."""
    generator = np.random.default_rng(seed)
    names = {record.name for record in bundle.manifest.ladder.parameters}
    values = {
        name: (value + 0.2 * generator.normal(size=value.shape)).astype(np.float32)
        if name in names
        else value
        for name, value in initial_values(bundle)
    }
    return adapter_of(
        bundle, values, classes=CLASSES, class_names=CLASSES, templates=["a photo of a {}."]
    )


@pytest.fixture
def run_folder(tmp_path: Path, bundle_folder: Path, picture_folder: Path) -> Path:
    """A run directory as training leaves it."""
    run = tmp_path / "run"
    run.mkdir()
    save_adapter(run, an_adapter(Bundle.open(bundle_folder)))
    request = {"bundle": str(bundle_folder), "data": str(picture_folder), "seed": 0, "shots": None}
    (run / "config.yaml").write_text(yaml.safe_dump({"request": request}))
    return run
