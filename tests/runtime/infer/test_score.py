"""Accuracy, confusion and zero-shot from cached inputs, in chunks."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest

from edgeladder.core.files import write_json
from edgeladder.core.printable import json_parts, json_text
from edgeladder.runtime.logits import Activations, ClassLogits
from edgeladder.runtime.scoring import Score, evaluate_cached

NAMES = ["hat", "shoe", "dress"]


class Inputs:
    """A window of pictures as the cache gives it."""

    def __init__(self, count: int = 11, seed: int = 0):
        generator = np.random.default_rng(seed)
        self.labels = generator.integers(0, 3, count)
        self.text_embedding = np.eye(3, 5, dtype=np.float32)
        noise = generator.normal(size=(count, 5)).astype(np.float32)
        self.image_embedding = self.text_embedding[self.labels] + 0.6 * noise
        self.image_extra: dict[str, np.ndarray] = {}
        self.taps = generator.normal(size=(2, 4, count, 6)).astype(np.float32)
        self.reads: list[int] = []

    def image_taps(self, start, stop):
        self.reads.append(stop - start)
        return [self.taps[:, :, start:stop]]

    def text_taps(self, start, stop):
        return [np.zeros((2, 4, stop - start, 6), np.float32)]


class Engine:
    """Tuned embeddings that favour class 0, so that tuned and zero-shot differ."""

    name = "fake"

    def encode_image(self, taps, embedding, extra):
        return embedding + np.float32([0.5, 0, 0, 0, 0])

    def encode_text(self, taps, embedding):
        return embedding


LOGITS = ClassLogits(scale=10.0, bias=-1.0)


@pytest.mark.parametrize("chunk", [1, 4, 64])
def test_counts_match_brute_force_whatever_the_chunk(chunk):
    windows = [Inputs(11, 0), Inputs(7, 1)]
    result = evaluate_cached(Engine(), LOGITS, windows, NAMES, chunk=chunk)
    labels = np.concatenate([w.labels for w in windows])
    embedding = np.concatenate([w.image_embedding for w in windows])
    zero = (embedding[:, :3]).argmax(1)
    tuned = (embedding + np.float32([0.5, 0, 0, 0, 0]))[:, :3].argmax(1)
    assert result["count"] == 18 and result["split"] == "test"
    assert result["accuracy"] == pytest.approx((tuned == labels).mean())
    assert result["zero_shot_accuracy"] == pytest.approx((zero == labels).mean())
    for true in range(3):
        for taken in range(3):
            expected = int(((labels == true) & (tuned == taken)).sum())
            assert result["confusion"][true][taken] == expected
    assert list(result["per_class"]) == NAMES
    for k, entry in enumerate(result["per_class"].values()):
        assert entry["accuracy"] == pytest.approx((tuned[labels == k] == k).mean())
        assert entry["zero_shot_accuracy"] == pytest.approx((zero[labels == k] == k).mean())
    assert max(windows[0].reads) <= chunk


def test_a_head_counts_beside_the_ladder():
    class Oracle:
        def logits(self, features, zero_shot):
            assert [f.shape[1] for f in features] == [24, 24, 5]
            return np.tile(np.float64([0, 1, 0]), (len(zero_shot), 1))

    inputs = Inputs()
    plain = evaluate_cached(Engine(), LOGITS.with_head(Oracle(), 0.0), [inputs], NAMES)
    assert plain["confusion"] == evaluate_cached(Engine(), LOGITS, [inputs], NAMES)["confusion"]
    swamped = evaluate_cached(Engine(), LOGITS.with_head(Oracle(), 1e6), [inputs], NAMES)
    assert sum(row[1] for row in swamped["confusion"]) == 11


def test_no_pictures_is_no_accuracy_rather_than_an_error():
    result = evaluate_cached(Engine(), LOGITS, [], NAMES)
    assert result["accuracy"] is None and result["count"] == 0
    score = Score(NAMES)
    score.add(np.array([0]), np.eye(3)[:1], np.eye(3)[:1])
    per_class = score.to_dict("test")["per_class"]
    assert [c["accuracy"] for c in per_class.values()] == [1.0, None, None]


def test_counts_grow_beyond_a_byte_and_are_written_row_by_row():
    score = Score(NAMES)
    for _ in range(3):
        score.add(np.full(200, 2), np.tile(np.eye(3)[1], (200, 1)), np.tile(np.eye(3)[2], (200, 1)))
    assert score.confusion.dtype == np.uint16
    lists, rows = (score.to_dict("test", to_write=late) for late in (False, True))
    assert lists["confusion"] == [[0, 0, 0], [0, 0, 0], [0, 600, 0]]
    assert lists["per_class"]["dress"]["count"] == 600
    assert lists["zero_shot_accuracy"] == 1.0 and lists["accuracy"] == 0.0
    assert "".join(json_parts(rows)) == json_text(lists)


def test_many_classes_are_written_without_a_list_of_all_counts(tmp_path):
    score = Score([f"{k}" for k in range(250)])
    score.add(np.arange(8), np.zeros((8, 250)), np.zeros((8, 250)))
    tracemalloc.start()
    write_json(tmp_path / "evaluation.json", score.to_dict("test", to_write=True))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6  # 5 MB as lists and text
    assert len(json.loads((tmp_path / "evaluation.json").read_text())["confusion"][249]) == 250


def test_classes_read_in_windows_give_the_same_logits():
    random = np.random.default_rng(0)
    pictures, classes = (random.normal(size=(n, 64)).astype(np.float32) for n in (5, 600))

    class Stored:
        shape = classes.shape
        most = 0

        def __len__(self):
            return len(classes)

        def __getitem__(self, window):
            self.most = max(self.most, len(classes[window]))
            return classes[window]

    stored = Stored()
    found = LOGITS.similarity(pictures, stored)
    np.testing.assert_allclose(found, LOGITS.similarity(pictures, classes), rtol=1e-5, atol=1e-4)
    assert found.dtype == np.float32 and stored.most == 256


def test_head_features_flatten_taps_picture_by_picture():
    taps = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    features = Activations([taps], np.ones((4, 2))).features()
    assert [f.shape for f in features] == [(4, 15), (4, 15), (4, 2)]
    np.testing.assert_array_equal(features[1][2], taps[1, :, 2].reshape(-1))
