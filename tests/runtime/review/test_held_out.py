"""Held-out probabilities of given labels, and pictures that are there twice."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edgeladder.runtime.heads.discriminant import gda_rule
from edgeladder.runtime.pictures.dataset import Picture
from edgeladder.runtime.review import held_out
from edgeladder.runtime.review.duplicates import difference_hash, find_duplicates
from edgeladder.runtime.review.held_out import held_out_labels
from edgeladder.runtime.review.thumbnails import light


def clouds(classes: int, count: int, seed: int = 0, width: int = 24):
    """Unit rows around class directions, and their labels."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, width))
    labels = np.repeat(np.arange(classes), count)
    rows = centres[labels] + 0.7 * random.normal(size=(len(labels), width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float16), labels


def judge(rows, labels, classes, **more):
    none = np.zeros((len(rows), classes))
    told = {"most": 1000, **more}
    return held_out_labels(lambda r: rows[r], lambda r: none[r], labels, classes, **told)


def test_the_dual_form_is_gdas_rule():
    rows, labels = clouds(3, 7)
    wide = rows.astype(np.float64)
    matrix, bias = gda_rule(wide, labels, 3)
    expected = wide @ matrix + bias
    rule = held_out._fit(wide @ wide.T, np.eye(3)[labels])
    expected /= (expected - expected.mean(axis=1, keepdims=True)).std()
    assert np.allclose(rule.scores(wide @ wide.T), expected, atol=1e-8)


@pytest.mark.parametrize("most", [1000, 40])
def test_changed_labels_are_found(most):
    rows, labels = clouds(4, 20)
    random = np.random.default_rng(1)
    wrong = random.choice(len(labels), 8, replace=False)
    given = labels.copy()
    given[wrong] = (given[wrong] + 1) % 4
    found = judge(rows, given, 4, most=most)
    order = np.argsort(found.given)
    assert len(set(order[:8]) & set(wrong)) >= 7
    assert (found.best[wrong] == labels[wrong]).mean() > 0.8


def test_no_picture_is_judged_by_a_fit_that_saw_it():
    """A lone outlier's own label must not be explained by the outlier itself."""
    rows, labels = clouds(2, 10)
    rows[0] = rows[10]
    found = judge(rows, labels, 2)
    assert found.given[0] < 0.2 < found.given[1] and found.best[0] == 1


def test_a_class_of_one_picture_is_not_judged():
    rows, labels = clouds(3, 6)
    keep = np.r_[0, 6:18]
    found = judge(rows[keep], labels[keep], 3)
    assert np.isnan(found.given[0]) and np.isfinite(found.given[1:]).all()
    alone = judge(rows[:6], labels[:6], 3)
    assert np.isnan(alone.given).all()


def test_an_order_to_stop_is_heard():
    rows, labels = clouds(2, 8)

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(rows, labels, 2, on_step=stop)


class _Given:
    """Pictures of given pixels in a list."""

    def __init__(self, pixels):
        self.pixels = pixels

    def picture(self, row, path, label):
        return Picture(path, label, None, self, row)


def scene(seed: int) -> np.ndarray:
    """A smooth picture (64, 64, 3): like a photograph, unlike noise."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC))


def test_twice_across_classes_and_splits_but_not_two_of_a_kind():
    base = [scene(seed) for seed in range(4)]
    brighter = np.clip(base[1].astype(int) + 12, 0, 255).astype(np.uint8)
    pixels = [base[0], base[0], base[1], brighter, base[2], base[3], base[3]]
    keys = np.array([0, 0, 1, 2, 3, 4, 4], np.uint8)[:, None].repeat(16, 1)
    labels = ["a", "b", "a", "a", "a", "b", "b"]
    sides = ["train", "train", "train", "test", "train", "train", "train"]
    source = _Given(pixels)
    pictures = [source.picture(k, f"{k}.png", label) for k, label in enumerate(labels)]
    directions = np.eye(8)[[0, 0, 1, 1, 1, 3, 3]]  # row 4 is of one kind with 2 and 3
    directions[3] += 0.02
    found = find_duplicates(
        pictures, sides, keys, lambda rows: directions[rows], lambda row: light(pixels[row])
    )
    told = [(g.kind, [p.path for p in g.pictures]) for g in found.groups]
    assert told == [("identical", ["0.png", "1.png"]), ("similar", ["2.png", "3.png"])]
    assert found.groups[0].across_classes and not found.groups[0].across_splits
    assert found.groups[1].across_splits and not found.groups[1].across_classes
    assert found.repeated == 1
    assert 0.9 < found.groups[1].similarity <= 1


def test_the_hash_survives_scaling_and_compression_not_another_scene():
    import io

    one = Image.fromarray(scene(7))
    out = io.BytesIO()
    one.resize((48, 48)).save(out, "JPEG", quality=40)
    again = np.asarray(Image.open(out).resize((64, 64)))
    same = difference_hash(light(np.asarray(one))) != difference_hash(light(again))
    other = difference_hash(light(np.asarray(one))) != difference_hash(light(scene(8)))
    assert same.sum() <= 12 < other.sum()
