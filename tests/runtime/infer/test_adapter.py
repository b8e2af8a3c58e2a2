"""Adapters: a round trip, and everything that must be refused."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgeladder.core.adapter_record import StoredHead
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.prompt_tensors import PromptTensors
from edgeladder.runtime.adapter import adapter_of, load_adapter, save_adapter
from edgeladder.runtime.heads.closed_form import fit_gda, head_arrays, head_from


class Engine:
    """Holds parameters and buffers by name."""

    def __init__(self):
        self.values = {"up": np.zeros((2, 3), np.float32), "gate": np.zeros(1, np.float32)}
        self.masks = {"mask": np.ones(4, np.float32)}

    def parameters(self):
        return dict(self.values)

    def buffers(self):
        return dict(self.masks)

    def set_parameters(self, values):
        self.values.update(values)

    def set_buffers(self, values):
        self.masks.update(values)


@pytest.fixture
def bundle(tmp_path):
    (tmp_path / "forward.onnx").write_bytes(b"a ladder")
    return SimpleNamespace(
        digest="a" * 64,
        path=lambda name: tmp_path / name,
        manifest=SimpleNamespace(
            ladder=SimpleNamespace(forward="forward.onnx", prompts=PromptTensors()),
            model=SimpleNamespace(name="nano"),
        ),
    )


@pytest.fixture
def saved(tmp_path, bundle):
    run = tmp_path / "run"
    run.mkdir()
    adapter = adapter_of(
        bundle,
        {"up": np.arange(6, dtype=np.float32).reshape(2, 3), "gate": np.float32([0.5])},
        buffers={"mask": np.float32([1, 0, 1, 0])},
        classes=["t-shirt", "hat"],
        class_names=["T-shirt", "café hat"],
        templates=["a photo of a {}."],
        profile={"name": "default"},
    )
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], 4)
    head = fit_gda([generator.normal(size=(8, 5))], labels, generator.normal(size=(8, 2)))
    adapter.head_arrays, rule = head_arrays(head)
    adapter.record = replace(adapter.record, head=StoredHead(rule, 0.5))
    save_adapter(run, adapter)
    return run


def test_a_round_trip_keeps_everything(saved, bundle):
    adapter = load_adapter(saved, bundle)
    assert adapter.record.classes == ["t-shirt", "hat"]
    assert adapter.record.class_names == ["T-shirt", "café hat"]
    assert adapter.record.templates == ["a photo of a {}."]
    assert adapter.record.model == "nano" and adapter.record.profile == {"name": "default"}
    assert adapter.record.created.endswith("Z")
    engine = Engine()
    adapter.apply(engine)
    np.testing.assert_array_equal(engine.values["up"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(engine.masks["mask"], [1, 0, 1, 0])
    head = head_from(adapter.head_arrays, adapter.record.head.rule)
    assert head.logits([np.ones((3, 5))], np.zeros((3, 2))).shape == (3, 2)
    assert adapter.record.head.head_weight == 0.5
    assert load_adapter(saved / "adapter.json").record.classes == adapter.record.classes


def test_it_loads_wherever_the_same_bundle_is(saved, bundle, tmp_path):
    moved = tmp_path / "elsewhere"
    saved.rename(moved)
    assert load_adapter(moved, bundle).record.model == "nano"


def test_another_bundle_is_refused(saved, bundle):
    bundle.digest = "b" * 64
    with pytest.raises(IntegrityError, match="belongs to another bundle") as caught:
        load_adapter(saved, bundle)
    assert caught.value.exit_code == 5
    assert "--bundle" in caught.value.remedy


def test_another_ladder_is_refused(saved, bundle):
    adapter = load_adapter(saved, bundle)
    engine = Engine()
    engine.values["up"] = np.zeros((9, 9), np.float32)
    with pytest.raises(IntegrityError, match="up .* is not the ladder's"):
        adapter.apply(engine)
    engine = Engine()
    engine.values["more"] = np.zeros(1, np.float32)
    with pytest.raises(IntegrityError, match="lacks more"):
        adapter.apply(engine)


@pytest.mark.parametrize("name", ["adapter.safetensors", "adapter.json"])
def test_half_an_adapter_is_refused(saved, name):
    (saved / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} is missing"):
        load_adapter(saved)


def test_changed_and_cut_files_are_refused(saved):
    path = saved / "adapter.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="is not what adapter.json says"):
        load_adapter(saved)
    record = json.loads((saved / "adapter.json").read_text())
    early = {"sha256": None, "digest": None, "schema_version": 1}  # of a version without hashes
    (saved / "adapter.json").write_text(json.dumps({**record, **early}))
    path.write_bytes(content[:20])
    with pytest.raises(IntegrityError, match="not a whole safetensors file"):
        load_adapter(saved)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"schema_version": 1}'])
def test_an_unreadable_record_is_refused(saved, text):
    (saved / "adapter.json").write_text(text)
    with pytest.raises(IntegrityError, match="unreadable adapter.json"):
        load_adapter(saved)


def test_another_version_is_refused(saved):
    record = json.loads((saved / "adapter.json").read_text())
    (saved / "adapter.json").write_text(json.dumps({**record, "schema_version": 9}))
    with pytest.raises(IntegrityError, match="adapter version 9"):
        load_adapter(saved)
