"""Adapters whose hashes are right and whose content is nobody's: refused as they are opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeladder.core.adapter_record import AdapterRecord, GdaRecord, KnownRecord, StoredHead
from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import IntegrityError
from edgeladder.core.tensors import TensorFile
from edgeladder.runtime.adapter import Adapter, adapter_of, load_adapter, save_adapter
from edgeladder.runtime.adapter_fit import require_fit
from edgeladder.runtime.classifier import OpenedRun
from edgeladder.runtime.ladder_encoder import Encoder
from edgeladder.runtime.vocabulary import Vocabulary


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return Bundle.reopen(bundle_folder)


@pytest.fixture
def adapter(bundle: Bundle) -> Adapter:
    values = dict(TensorFile(bundle.path(bundle.manifest.ladder.initial)).items())
    return adapter_of(
        bundle, values, classes=["a", "b"], class_names=["a", "b"], templates=["a {}."]
    )


def opened(bundle: Bundle, adapter: Adapter) -> None:
    run = OpenedRun(Path("run"), bundle, adapter, Vocabulary.of_run(adapter.record))
    require_fit(bundle.manifest, run.formula(), run.known(), 2, where="run")


def widths(bundle: Bundle) -> tuple[int, int]:
    """Of the embedding, and of it beside the one before the projection or the last tap."""
    model = bundle.manifest.model
    group = [group for group in bundle.manifest.ladder.groups if group.side == "image"][-1]
    return model.embedding_dim, model.embedding_dim + group.tokens * group.width


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        ({}, True),
        ({"matrix": np.zeros((3, 2), np.float32)}, False),
        ({"matrix": np.zeros(2, np.float32)}, False),
        ({"bias": np.zeros(5, np.float32)}, False),
        ({"reads": (99,)}, False),
        ({"reads": ()}, False),
    ],
)
def test_a_head_that_cannot_be_computed(
    bundle: Bundle, adapter: Adapter, change: dict[str, object], fits: bool
) -> None:
    width, _ = widths(bundle)
    arrays = {"matrix": np.zeros((width, 2), np.float32), "bias": np.zeros(2, np.float32)}
    rule = GdaRecord(weight=1.0, prior=1.0, reads=change.get("reads", (-1,)))
    arrays |= {name: array for name, array in change.items() if name in arrays}
    made = replace(adapter, record=replace(adapter.record, head=StoredHead(rule)))
    made.head_arrays = arrays
    if fits:
        opened(bundle, made)
        return
    with pytest.raises(IntegrityError, match="head cannot be of this bundle"):
        opened(bundle, made)


@pytest.mark.parametrize("shape", [(0, 7), (4,), (), (1, 1, 1), (4, 7)])
def test_rows_of_known_pictures_that_are_none(
    bundle: Bundle, adapter: Adapter, shape: tuple[int, ...]
) -> None:
    record = KnownRecord(threshold=0.5, reads=(-1,))
    made = replace(adapter, record=replace(adapter.record, known=record))
    made.known_arrays = {"support": np.ones((4, widths(bundle)[0]), np.float16)}
    opened(bundle, made)
    made.known_arrays = {"support": np.ones(shape, np.float16)}
    with pytest.raises(IntegrityError):
        opened(bundle, made)
    made.record = replace(made.record, known=replace(record, reads=(99,)))
    with pytest.raises(IntegrityError):
        opened(bundle, made)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": []},
        {"class_names": ["a"]},
        {"text": {"aliases": 5}},
        {"text": {"aliases": [5]}},
        {"text": {"aliases": {"a": 1}}},
        {"text": {"aliases": [["x"], [5]]}},
    ],
)
def test_classes_that_are_none(adapter: Adapter, change: dict[str, object]) -> None:
    record: AdapterRecord = replace(adapter.record, **change)
    with pytest.raises(IntegrityError, match="classes and their names"):
        Vocabulary.of_run(record)


@pytest.mark.parametrize("kind", [np.int8, np.float64, bool])
def test_parameters_of_another_type(bundle: Bundle, adapter: Adapter, kind: type) -> None:
    name = bundle.manifest.ladder.parameters[0].name
    shape = tuple(bundle.manifest.ladder.parameters[0].shape)
    values = {**adapter.parameters, name: np.zeros(shape, kind)}
    with pytest.raises(IntegrityError, match="the adapter has"):
        Encoder(bundle, values, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(tmp_path: Path, adapter: Adapter, value: float) -> None:
    name = next(iter(adapter.parameters))
    adapter.parameters[name] = np.full_like(adapter.parameters[name], value)
    save_adapter(tmp_path, adapter)
    with pytest.raises(IntegrityError, match="NaN or infinity"):
        load_adapter(tmp_path)
