"""What the whole suite shares: a tiny bundle, the wheel, and a few generated pictures."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

import edgeladder

settings.register_profile("suite", deadline=None)  # a busy machine is no failure
settings.load_profile("suite")


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny bundle with untrained weights; tests must not change it.

    `tools/test` exports it once and names it in EDGELADDER_TEST_BUNDLE, so that environments
    without torch have it too; elsewhere it is exported here.
    """
    given = os.environ.get("EDGELADDER_TEST_BUNDLE")
    if given:
        return Path(given)
    if importlib.util.find_spec("torch") is None:
        pytest.fail("no torch to export the test bundle with: set EDGELADDER_TEST_BUNDLE to one")
    from tests.make_bundle import make_bundle

    return make_bundle(tmp_path_factory.mktemp("bundle") / "bundle")


@pytest.fixture
def bundle_copy(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may damage."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "bundle-copy"))


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel: `tools/test` names it in EDGELADDER_TEST_WHEEL, else it is built here."""
    given = os.environ.get("EDGELADDER_TEST_WHEEL")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", "-w", folder, Path(__file__).parents[1]], check=True
    )
    return next(folder.glob("edgeladder-*.whl"))


def make_pictures(folder: Path, *, classes: int = 3, count: int = 8, size: int = 40) -> Path:
    """An image folder of coloured noise: class k is bright in channel k. Returns `folder`."""
    random = np.random.default_rng(0)
    for k in range(classes):
        place = folder / f"class{k}"
        place.mkdir(parents=True)
        for index in range(count):
            pixels = random.integers(0, 120, (size, size + index, 3), dtype=np.uint8)
            pixels[..., k % 3] += 100
            Image.fromarray(pixels).save(place / f"picture{index}.png")
    return folder


@pytest.fixture
def picture_folder(tmp_path: Path) -> Path:
    """Three classes of eight generated pictures."""
    return make_pictures(tmp_path / "pictures")


@pytest.fixture(scope="module")
def browser():
    """A real browser for one file's tests; they are skipped where there is none."""
    from tests.serve.browser import Browser

    found = Browser()
    yield found
    found.close()


def own_program(folder: Path) -> dict[str, str]:
    """Put an `edgeladder` of this environment into `folder`; the environment with it in PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "edgeladder"
    program.write_text(f"#!{sys.executable}\nfrom edgeladder.cli.app import run\nrun()\n")
    program.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(Path(edgeladder.__file__).parents[1]),
    }
