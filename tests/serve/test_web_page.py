"""docs/web: a deployed file in a real browser, run by onnxruntime-web, against predict."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeladder.core.inference import Form
from edgeladder.runtime.classifier import Classifier, probabilities
from edgeladder.runtime.deployment import deploy
from tests.serve.browser import Browser, absolute

PAGE = Path(__file__).parents[2] / "docs" / "web"
PACKAGE = "onnxruntime-web@1.30.0"
NEEDED = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")


@pytest.fixture(scope="module")
def page_folder(tmp_path_factory: pytest.TempPathFactory, nano_run: Path) -> Path:
    """The page with a deployed file and onnxruntime-web beside it, as the guide has it."""
    if shutil.which("npm") is None:
        pytest.skip("no npm here: apt-get install npm")
    folder = tmp_path_factory.mktemp("web")
    packed = folder / "packed"
    packed.mkdir()
    done = subprocess.run(
        ["npm", "pack", "--silent", "--prefer-offline", "--pack-destination", packed, PACKAGE],
        capture_output=True, text=True, check=False, timeout=300, cwd=folder,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"npm has no {PACKAGE} here: {done.stderr.strip()[-300:]}")
    with tarfile.open(next(packed.glob("*.tgz"))) as archive:
        for name in NEEDED:
            content = archive.extractfile(f"package/dist/{name}")
            assert content is not None
            (folder / name).write_bytes(content.read())
    for name in ("index.html", "classify.js"):
        shutil.copy(PAGE / name, folder)
    deploy(nano_run, folder / "model.onnx", Form(portable=True, include_resize=True))
    return folder


@pytest.fixture(scope="module")
def address(page_folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(page_folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join(10)


def read(answers: str) -> dict[str, float]:
    """Names and shares of the page's list."""
    lines = [line.split() for line in answers.splitlines() if line.endswith("%")]
    return {name: float(share) / 100 for name, share, _ in lines}


def test_the_page_says_what_predict_says(
    browser: Browser, address: str, nano_run: Path, tmp_path: Path
) -> None:
    random = np.random.default_rng(0)
    rough = random.integers(0, 256, (9, 13, 3), dtype=np.uint8)
    picture = Image.fromarray(rough).resize((301, 260), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone's, lying: it stands upright here and there
    paths = [tmp_path / "drawn.png", tmp_path / "photo.jpg"]
    picture.save(paths[0])
    picture.save(paths[1], quality=95, exif=exif)
    browser.open(address)
    browser.until("#status", "ready", 60)
    with Classifier.open(nano_run) as classifier:
        for path in paths:
            browser.type("#picture", absolute(path))
            browser.until("#answers", "%")
            browser.until("#status", "done")
            found = read(browser.text("#answers"))
            (shares,) = probabilities(classifier.logits(classifier.square(path.read_bytes())[None]))
            expected = dict(zip(classifier.classes, shares.tolist(), strict=True))
            assert found == pytest.approx(expected, abs=5e-3)
            browser.run("document.getElementById('answers').replaceChildren()")
            browser.run("document.getElementById('status').textContent = ''")
    assert not browser.complaints()


def test_a_file_without_its_own_resizing_is_refused_in_words(
    browser: Browser, address: str, page_folder: Path, nano_run: Path
) -> None:
    deploy(nano_run, page_folder / "square.onnx", Form(portable=True))
    browser.open(f"{address}?model=square.onnx")
    browser.until("#status", "failed: deploy the file with --include-resize")
    browser.open(f"{address}?model=gone.onnx")
    browser.until("#status", "failed: gone.onnx is not beside this page: 404")
