"""Towers by segment against the same towers whole, and against numpy."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from tiny_tower import CONTEXT, SIZE, TinyBundle

import edgeladder
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import IntegrityError, StorageError
from edgeladder.runtime import session as session_module
from edgeladder.runtime.session import open_segment
from edgeladder.runtime.towers.runner import TowerRunner, TowerSizes
from edgeladder.runtime.towers.spill import SpillFile
from edgeladder.runtime.towers.tokens import Tokenizer


class Given:
    """Samples from an array."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.count = len(array)

    def read(self, start: int, stop: int) -> np.ndarray:
        """A window."""
        return self.array[start:stop]


def pixels(count: int) -> np.ndarray:
    """Random pictures."""
    random = np.random.default_rng(0)
    return random.normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def run(
    bundle: TinyBundle | Bundle, side: str, array: np.ndarray, workdir: Path, **sizes: object
) -> dict:
    """All outputs of a tower, in order."""
    workdir.mkdir(exist_ok=True)
    found: dict[str, list[np.ndarray]] = {}
    expected_start = 0
    done = 0.0

    def sink(start: int, outputs: dict[str, np.ndarray]) -> None:
        nonlocal expected_start
        assert start == expected_start
        expected_start += len(outputs["embedding"])
        for name, values in outputs.items():
            found.setdefault(name, []).append(values.copy())

    def tick(samples: float) -> None:
        nonlocal done
        done += samples

    options = TowerSizes(**{"group": 7, "batch": 2, "threads": 1, **sizes})
    with contextlib.closing(TowerRunner(bundle, side, options, workdir)) as runner:
        runner.run(Given(array), sink, tick)
    assert abs(done - len(array)) < 1e-6
    assert list(workdir.iterdir()) == []  # the disk is given back
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("group", "batch"), [(5, 1), (7, 2), (100, 64)])
def test_image_tower(tiny: TinyBundle, tmp_path: Path, whole: bool, group: int, batch: int) -> None:
    """Any group and batch give numpy's result, in order."""
    array = pixels(17)
    found = run(tiny, "image", array, tmp_path / "w", whole=whole, group=group, batch=batch)
    for name, expected in tiny.image_reference(array).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_text_tower(tiny: TinyBundle, tmp_path: Path, whole: bool) -> None:
    """Tokens stay whole numbers."""
    tokens = np.random.default_rng(1).integers(0, 11, (9, CONTEXT))
    found = run(tiny, "text", tokens, tmp_path / "w", whole=whole)
    for name, expected in tiny.text_reference(tokens).items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["nano", "suite"])
@pytest.mark.parametrize("side", ["image", "text"])
def test_how_a_tower_is_run_changes_nothing(
    side: str, name: str, bundle_folder: Path, tmp_path: Path
) -> None:
    """Whole or streamed, any batch, alone or among others: of real transformers' towers.

    To the last bit in a process of its own, as phases are (the cache's bytes are compared through
    the supervisor); where other sessions ran before, as here, sums may end a last bit apart.
    """
    nano = Path(edgeladder.__file__).parent / "_nano" / "bundle"
    bundle = Bundle.open(nano if name == "nano" else bundle_folder)
    random = np.random.default_rng(3)
    if side == "image":
        size = bundle.manifest.preprocess.size
        array = random.normal(size=(9, 3, size, size)).astype(np.float32)
    else:
        texts = [
            f"a photo of a {word}."
            for word in ("dog", "cat", "hat", "jar", "tree", "car", "sea", "box", "lamp")
        ]
        array = Tokenizer.from_bundle(bundle).encode(texts)
    expected = run(bundle, side, array, tmp_path / "w", whole=True, batch=8)
    for whole, group, batch in ((True, 9, 1), (True, 9, 4), (False, 9, 8), (False, 2, 1)):
        found = run(bundle, side, array, tmp_path / "w", whole=whole, group=group, batch=batch)
        for output, values in expected.items():
            np.testing.assert_allclose(
                found[output],
                values,
                rtol=0,
                atol=2e-6,
                err_msg=f"{output} {whole} {group} {batch}",
            )


def test_stage_round_trip(tmp_path: Path) -> None:
    """Bytes exactly as they came."""
    squares = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    stage = SpillFile(tmp_path / "s")
    for square in squares:
        stage.append(square[None])
    assert (stage.read(1, 4) == squares[1:4]).all()
    stage.discard()
    assert not (tmp_path / "s").exists()
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    values[2] *= 1e6
    stage = SpillFile(tmp_path / "s")
    stage.append(values[:4])
    stage.append(values[4:])
    np.testing.assert_array_equal(stage.read(0, 6), values)
    np.testing.assert_array_equal(stage.read(2, 3), values[2:3])
    stage.discard()


def test_no_space_for_hidden_states(
    tiny: TinyBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clear error, and the space that was taken is given back."""
    written = 0
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        nonlocal written
        written += 1
        if written == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StorageError, match="no space left") as caught:
        run(tiny, "image", pixels(9), tmp_path / "w")
    assert "already written is kept" in str(caught.value.remedy)
    assert list((tmp_path / "w").iterdir()) == []


def test_a_damaged_segment(tmp_path: Path) -> None:
    """Named, with the remedy."""
    bundle = TinyBundle(tmp_path / "b")
    (tmp_path / "b" / "image" / "01.onnx").write_bytes(b"nonsense")
    with pytest.raises(IntegrityError, match="cannot load a backbone segment") as caught:
        run(bundle, "image", pixels(2), tmp_path / "w")
    assert "01.onnx" in str(caught.value.where) and "export" in str(caught.value.remedy)


def test_int8_weights_are_multiplied_in_float() -> None:
    """The same embeddings with every onnxruntime: newer ones would quantise the activations."""
    shipped = Path(edgeladder.__file__).parent / "_nano" / "bundle" / "backbone"
    plain = onnxruntime.SessionOptions()
    session_module._use_threads(plain, 1, share=False)
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name in ("text/01_block", "image/08_tail"):
        path = shipped / f"{name}.onnx"
        session = open_segment(path, 1)
        random = np.random.default_rng(0)
        given = {
            item.name: random.standard_normal(
                [n if isinstance(n, int) else 3 for n in item.shape], np.float32
            )
            for item in session.get_inputs()
        }
        expected = onnxruntime.InferenceSession(str(path), plain).run(None, given)
        for mine, theirs in zip(session.run(None, given), expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
