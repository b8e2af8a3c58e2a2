"""The one formula of class logits, against what it says, and that it stands in one place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import edgeladder
from edgeladder.core.adapter_record import StoredHead
from edgeladder.runtime.heads.closed_form import fit_head, head_arrays, with_stored_head
from edgeladder.runtime.logits import Activations, ClassEmbeddings, ClassLogits, windows

PACKAGE = Path(edgeladder.__file__).parent
RANDOM = np.random.default_rng(0)


class Doubling:
    """A ladder whose embeddings are twice the given ones."""

    def encode_image(self, taps, embedding, extra):
        return 2 * embedding


def activations(count: int) -> Activations:
    taps = [RANDOM.normal(size=(2, 3, count, 4)).astype(np.float32)]
    embedding = RANDOM.normal(size=(count, 5)).astype(np.float32)
    return Activations(taps, embedding, {"before": RANDOM.normal(size=(count, 6))})


@pytest.mark.parametrize("temperature", [1.0, 12.5])
@pytest.mark.parametrize("ladder_weight", [1.0, 0.0])
def test_logits_are_what_the_formula_says(ladder_weight, temperature):
    given, classes = activations(9), ClassEmbeddings(np.eye(3, 5), np.eye(3, 5)[::-1])
    labels = np.repeat(np.arange(3), 3)
    zero_shot = 7.0 * given.embedding @ classes.zero_shot.T - 1.5
    head = fit_head("gda", given.features(), labels, zero_shot)
    formula = ClassLogits(7.0, -1.5).with_head(head, 0.25, ladder_weight).at(temperature)
    found, plain = formula.classify(Doubling(), given, classes)
    tuned = 7.0 * (2 * given.embedding) @ classes.tuned.T - 1.5
    np.testing.assert_allclose(plain, zero_shot, rtol=1e-5)
    expected = ladder_weight * tuned + 0.25 * head.logits(given.features(), zero_shot)
    np.testing.assert_allclose(found, expected / temperature, rtol=1e-4)
    alone, _ = ClassLogits(7.0, -1.5).at(temperature).classify(Doubling(), given, classes)
    np.testing.assert_allclose(alone, tuned / temperature, rtol=1e-4)
    assert [rows.shape[1] for rows in given.features()] == [12, 12, 6, 5]


def test_a_temperature_moves_no_picture_to_another_class():
    given, classes = activations(40), ClassEmbeddings(RANDOM.normal(size=(6, 5)), np.eye(6, 5))
    labels = np.repeat(np.arange(4), 10)
    head = fit_head("gda", given.features(), labels, np.zeros((40, 4)))
    plain = ClassLogits(7.0).with_head(head, 2.0)
    some = replace(plain, head_columns=(5, 0, 2, 3))
    four = ClassEmbeddings(classes.zero_shot[:4], classes.tuned[:4])
    for formula, asked in ((plain, four), (some, classes), (ClassLogits(7.0), classes)):
        before, _ = formula.classify(Doubling(), given, asked)
        after, _ = formula.at(9.0).classify(Doubling(), given, asked)
        np.testing.assert_array_equal(before.argmax(axis=1), after.argmax(axis=1))
        assert np.abs(before - after).max() > 0.1


def test_names_that_the_head_does_not_know_are_at_the_ladders_temperature():
    given, classes = activations(20), ClassEmbeddings(RANDOM.normal(size=(5, 5)), np.eye(5))
    head = fit_head("gda", given.features(), np.repeat(np.arange(3), [7, 7, 6]), np.zeros((20, 3)))
    plain = ClassLogits(7.0).with_head(head, 2.0).at(9.0)
    some = replace(plain, head_columns=(4, 0, 2), ladder_temperature=3.0)
    found, _ = some.classify(Doubling(), given, classes)
    tuned = 7.0 * (2 * given.embedding) @ classes.tuned.T
    own = [4, 0, 2]
    zero_shot = 7.0 * given.embedding @ classes.zero_shot.T
    both = (tuned[:, own] + 2.0 * head.logits(given.features(), zero_shot[:, own])) / 9.0
    expected = tuned / 3.0
    expected[:, own] = both - both.max(1, keepdims=True) + expected[:, own].max(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_stored_head_comes_back_with_its_weights():
    given = activations(6)
    head = fit_head("gda", given.features(), np.repeat([0, 1, 2], 2), np.zeros((6, 3)))
    arrays, rule = head_arrays(head)
    plain = ClassLogits(5.0)
    assert with_stored_head(plain, None, {}) is plain
    formula = with_stored_head(plain, StoredHead(rule, 0.5, 0.0), arrays)
    assert (formula.head_weight, formula.ladder_weight, formula.scale) == (0.5, 0.0, 5.0)
    assert formula.head.logits(given.features(), np.zeros((6, 3))).shape == (6, 3)


def test_windows_cover_the_batch_and_read_taps_only_where_asked():
    whole = activations(7)
    reads = []

    def image_taps(start, stop):
        reads.append(stop - start)
        return [tap[:, :, start:stop] for tap in whole.taps]

    inputs = SimpleNamespace(
        labels=np.zeros(7, np.int64),
        image_embedding=whole.embedding,
        image_extra=whole.extra,
        image_taps=image_taps,
    )
    parts = list(windows(inputs, 3))
    assert [(window.start, window.stop) for window, _ in parts] == [(0, 3), (3, 6), (6, 7)]
    np.testing.assert_array_equal(
        np.concatenate([part.features()[0] for _, part in parts]), whole.features()[0]
    )
    assert reads == [3, 3, 1]
    assert all(not part.taps for _, part in windows(inputs, 3, embedding_only=True))
    assert reads == [3, 3, 1]


def test_the_scale_of_logits_is_used_in_one_file():
    device = [p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] != "host"]
    found = [p for p in device if "logit_scale" in p.read_text(encoding="utf-8")]
    names = {p.relative_to(PACKAGE).as_posix() for p in found} - {
        "core/bundle.py",
        "core/manifest.py",
        "runtime/deployment.py",  # tells the user of a file of embeddings
    }
    assert names == {"runtime/logits.py"}
