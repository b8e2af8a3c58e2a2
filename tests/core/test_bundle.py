"""A bundle's manifest is bounded, and its towers are known by their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeladder.core.bundle import Bundle, write_manifest
from edgeladder.core.errors import IntegrityError

Change = Callable[[dict[str, Any]], None]


def rewritten(folder: Path, change: Change) -> Path:
    """The bundle with a changed manifest, whose hashes still hold."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))  # NaN and Infinity as Python writes and reads them
    return folder


def at(*keys: Any, value: Any) -> Change:
    """Sets one value."""

    def change(values: dict[str, Any]) -> None:
        inner: Any = values
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


NAN, INFINITY = float("nan"), float("inf")
NONSENSE = {
    "scale nan": at("model", "logit_scale", value=NAN),
    "scale infinite": at("model", "logit_scale", value=INFINITY),
    "scale negative": at("model", "logit_scale", value=-3.0),
    "scale zero": at("model", "logit_scale", value=0),
    "bias nan": at("model", "logit_bias", value=NAN),
    "no dimensions": at("model", "embedding_dim", value=0),
    "memory negative": at("image", "segments", 1, "activation_bytes", value=-(10**12)),
    "weights negative": at("text", "segments", 0, "weight_bytes", value=-1),
    "weights of a continent": at("text", "segments", 0, "weight_bytes", value=10**18),
    "no graph": at("ladder", "graphs", value={}),
    "graph negative": at("ladder", "graphs", "fused", "activation_bytes", "fixed", value=-1e12),
    "graph nan": at("ladder", "graphs", "fused", "activation_bytes", "per_image", value=NAN),
    "peak infinite": at("ladder", "graphs", "fused", "peaks", 0, 1, value=INFINITY),
    "residuals nan": at("ladder", "graphs", "fused", "residual_bytes", value=NAN),
    "size zero": at("preprocess", "size", value=0),
    "size huge": at("preprocess", "size", value=10**6),
    "std zero": at("preprocess", "std", 0, value=0.0),
    "std nan": at("preprocess", "std", 2, value=NAN),
    "mean infinite": at("preprocess", "mean", 1, value=INFINITY),
    "mean of two": at("preprocess", "mean", value=[0.5, 0.5]),
    "fill": at("preprocess", "fill", value=300),
    "context": at("tokenizer", "context_length", value=0),
    "tokens": at("image", "taps", 0, "tokens", value=-5),
    "tap": at("ladder", "groups", 0, "taps", value=[0, 7]),
    "tap negative": at("ladder", "groups", 0, "taps", value=[-1]),
    "group": at("ladder", "groups", 0, "tokens", value=4),
    "shape": at("image", "segments", 1, "outputs", 0, "shape", value=[5, 0]),
    "dimensions without end": at(
        "image", "segments", 1, "outputs", 0, "shape", value=[2**31 - 1] * 40
    ),
    "nodes of 400 digits": at("ladder", "graphs", "loss", "nodes", value=10**400),
    "block of 400 digits": at("image", "taps", 0, "block", value=10**400),
    "parameter": at("ladder", "parameters", 0, "shape", 0, value=2**40),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_manifest_with_nonsense_is_refused(bundle_copy: Path, name: str) -> None:
    rewritten(bundle_copy, NONSENSE[name])
    for opened in (Bundle.open, Bundle.reopen):
        with pytest.raises(IntegrityError, match="@") as caught:
            opened(bundle_copy)
        assert "manifest.json" in str(caught.value.where)


def test_a_tower_is_known_by_its_files(bundle_copy: Path) -> None:
    """Other weights, another preparation: another key, though the tower says it is the same."""
    before = {side: Bundle.open(bundle_copy).tower_key(side) for side in ("image", "text")}
    assert before == {side: Bundle.reopen(bundle_copy).tower_key(side) for side in before}
    declared = Bundle.open(bundle_copy).manifest.image.digest

    def keys() -> dict[str, str]:
        write_manifest(bundle_copy, Bundle.open(bundle_copy, verify=False).manifest)
        opened = Bundle.open(bundle_copy)
        assert opened.manifest.image.digest == declared
        found = {side: opened.tower_key(side) for side in before}
        assert found == {side: Bundle.reopen(bundle_copy).tower_key(side) for side in before}
        return found

    weights = bundle_copy / "backbone" / "image" / "02_block.weights"
    content = bytearray(weights.read_bytes())
    content[100] ^= 1
    weights.write_bytes(content)
    other_weights = keys()
    assert other_weights["image"] != before["image"] and other_weights["text"] == before["text"]
    rewritten(bundle_copy, at("preprocess", "mean", 0, value=0.4))
    other_mean = keys()
    assert other_mean["image"] not in (before["image"], other_weights["image"])
    assert other_mean["text"] == before["text"]
    rewritten(bundle_copy, at("tokenizer", "context_length", value=15))
    assert keys()["text"] != before["text"] and keys()["image"] == other_mean["image"]
    golden = bundle_copy / "ladder" / "golden.safetensors"  # no tower's
    golden.write_bytes(bytes(golden.stat().st_size))
    assert keys()["image"] == other_mean["image"]


def test_a_tower_without_hashes_has_no_key(bundle_copy: Path) -> None:
    rewritten(bundle_copy, lambda values: values["files"].pop("backbone/text/01_block.onnx"))
    with pytest.raises(IntegrityError, match="no hash of backbone/text/01_block.onnx"):
        Bundle.reopen(bundle_copy)
    with pytest.raises(IntegrityError, match="does not list it"):
        Bundle.open(bundle_copy).tower_key("text")


def test_a_graph_that_is_checked_when_used_is_checked(bundle_copy: Path) -> None:
    """A prediction looks only into the graphs that it opens, and has no way around that."""
    manifest = Bundle.open(bundle_copy).manifest
    bad, good = manifest.image.segments[0].file, manifest.image.segments[1].file
    (bundle_copy / bad).write_bytes(b"\xff" * 40)
    write_manifest(bundle_copy, manifest)
    with pytest.raises(IntegrityError):
        Bundle.open(bundle_copy)
    opened = Bundle.open(bundle_copy, graphs="when used")
    assert opened.path(good).is_file()
    for _ in range(2):
        with pytest.raises(IntegrityError):
            opened.path(bad)
