"""An exported bundle whose towers multiply in int8: its taps beside float32's, run either way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeladder.core.bundle import Bundle
from edgeladder.core.yaml_config import load_profile
from edgeladder.host.export import ExportOptions, export
from edgeladder.runtime.cache.layout import EMBEDDING
from edgeladder.runtime.pictures.dataset import open_data
from edgeladder.runtime.pictures.decode import decode
from edgeladder.runtime.towers.runner import ArraySamples, TowerRunner, TowerSizes
from tests.conftest import make_pictures
from tests.make_bundle import CLASSES, register_model


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    folder = tmp_path_factory.mktemp("bundles")
    return {
        dtype: export(
            register_model(), "none", load_profile("tiny"),
            ExportOptions(CLASSES, dtype=dtype), out=folder / dtype,
        )
        for dtype in ("fp32", "int8")
    }  # fmt: skip


def passed(bundle: Bundle, pixels: np.ndarray, folder: Path, **sizes: object) -> dict:
    """Every output of the image tower."""
    found: dict[str, list[np.ndarray]] = {}

    def sink(_: int, outputs: dict[str, np.ndarray]) -> None:
        for name, array in outputs.items():
            found.setdefault(name, []).append(array)

    runner = TowerRunner(bundle, "image", TowerSizes(threads=1, **sizes), folder)
    runner.run(ArraySamples(pixels), sink)
    runner.close()
    return {name: np.concatenate(parts) for name, parts in found.items()}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The least of all samples."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    products = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(products.min())


def test_taps_are_float32s_whole_and_streamed_alike(bundles, tmp_path: Path) -> None:
    data = open_data(make_pictures(tmp_path / "pictures"))
    preprocess = bundles["fp32"].manifest.preprocess
    pixels = np.stack([decode(item.read(), preprocess) for item in data.pictures])
    exact = passed(bundles["fp32"], pixels, tmp_path, batch=8, whole=True)
    whole = passed(bundles["int8"], pixels, tmp_path, batch=8, whole=True)
    streamed = passed(bundles["int8"], pixels, tmp_path, batch=2, group=7)
    assert bundles["int8"].manifest.image.int8 is not None and EMBEDDING in whole
    for name, array in whole.items():
        assert (array == streamed[name]).all(), name
        assert 0.99 <= cosine(array, exact[name]) < 1, name
