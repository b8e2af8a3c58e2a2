"""Class embeddings that are kept between commands: the same answers, or made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeladder.runtime import classifier as module
from edgeladder.runtime.adapter import load_adapter, save_adapter
from edgeladder.runtime.classifier import Classifier
from edgeladder.runtime.kept_classes import _MOST_FILES


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "edgeladder" / "classes"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that classes passed the text tower."""
    calls: list[int] = []
    real = module.encode_classes

    def counted(*given, **named):
        calls.append(1)
        return real(*given, **named)

    monkeypatch.setattr(module, "encode_classes", counted)
    return calls


def embeddings(run: Path, classes: str | None = None):
    with Classifier.open(run, threads=1, classes=classes) as opened:
        return opened.class_embeddings


def test_the_text_tower_runs_once_for_a_run(run_folder, kept, encoded):
    first, again = embeddings(run_folder), embeddings(run_folder)
    assert len(encoded) == 1 and len(list(kept.iterdir())) == 1
    np.testing.assert_array_equal(first.tuned, again.tuned)
    np.testing.assert_array_equal(first.zero_shot, again.zero_shot)


def test_other_names_are_not_kept(run_folder, kept, encoded):
    for _ in range(2):
        embeddings(run_folder, classes="a boat,a horse")
    assert len(encoded) == 2 and not kept.exists()


def test_another_adapter_has_its_own(run_folder, kept, encoded):
    embeddings(run_folder)
    adapter = load_adapter(run_folder)
    adapter.parameters = {name: 1.5 * values for name, values in adapter.parameters.items()}
    save_adapter(run_folder, adapter)
    embeddings(run_folder)
    assert len(encoded) == 2 and len(list(kept.iterdir())) == 2


def test_a_flipped_bit_is_not_believed(run_folder, kept, encoded):
    right = embeddings(run_folder)
    (file,) = kept.iterdir()
    content = bytearray(file.read_bytes())
    content[-3] ^= 16
    file.write_bytes(content)
    np.testing.assert_array_equal(embeddings(run_folder).tuned, right.tuned)
    assert len(encoded) == 2
    embeddings(run_folder)
    assert len(encoded) == 2  # and mended


def test_only_the_last_ones_stay(run_folder, kept):
    kept.mkdir(parents=True)
    for number in range(_MOST_FILES + 3):
        (kept / f"{number}.safetensors").write_bytes(b"old")
    embeddings(run_folder)
    assert len(list(kept.iterdir())) == _MOST_FILES


def test_where_keys_are_pinned_nothing_is_kept(run_folder, kept, encoded, monkeypatch):
    monkeypatch.setattr("edgeladder.runtime.kept_classes.pinned_keys", lambda: ["a key"])
    for _ in range(2):
        embeddings(run_folder)
    assert len(encoded) == 2 and not kept.exists()


def test_a_cache_that_cannot_be_written_is_no_error(run_folder, kept, encoded):
    kept.parent.mkdir(parents=True)
    kept.write_text("a file where a folder should be")
    for _ in range(2):
        embeddings(run_folder)
    assert len(encoded) == 2
