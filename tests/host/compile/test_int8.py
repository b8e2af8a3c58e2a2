"""int8 products of frozen towers: the formula, smoothing, the choice, the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.manifest import TowerRecord
from edgeladder.core.onnx_check import check_model
from edgeladder.core.onnx_graph import Graph
from edgeladder.core.protobuf import FLOAT
from edgeladder.host.compile import int8_choice, int8_gate
from edgeladder.host.compile.fuse_attention import fuse_attention
from edgeladder.host.compile.int8_choice import choose
from edgeladder.host.compile.int8_gate import Batch, check_int8, least_cosine
from edgeladder.host.compile.int8_products import find_products, rounded
from edgeladder.host.compile.segments import run_segments, write_segments
from edgeladder.host.compile.weights import quantise
from edgeladder.host.model.backbone import Backbone, resolve_taps
from edgeladder.runtime.portable_graph import make_portable
from edgeladder.runtime.session import open_plain
from tests.host.compile.test_segments import TAPS, written
from tests.host.model.small_models import CONTEXT, small_backbone

WIDTH, HIDDEN, TOKENS = 48, 96, 5


def block(gelu: bool = False) -> onnx.ModelProto:
    """Layer norm, and a product of its rows; with a quick GELU and a second product if wanted."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["n"], axis=-1),
        helper.make_node("MatMul", ["n", "first"], ["h"]),
    ]
    weights = {
        "gain": random.uniform(0.5, 2, WIDTH),
        "shift": random.standard_normal(WIDTH),
        "first": random.standard_normal((WIDTH, HIDDEN)) / 7,
    }
    weights["first"][[3, 17]] /= 20  # weights of outlier channels are small
    if gelu:
        weights |= {"slope": np.array(1.702), "second": random.standard_normal((HIDDEN, WIDTH)) / 9}
        nodes += [
            helper.make_node("Mul", ["h", "slope"], ["s"]),
            helper.make_node("Sigmoid", ["s"], ["g"]),
            helper.make_node("Mul", ["h", "g"], ["a"]),
            helper.make_node("MatMul", ["a", "second"], ["y"]),
        ]
    graph = helper.make_graph(
        nodes,
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", TOKENS, WIDTH])],
        [helper.make_tensor_value_info("y" if gelu else "h", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in weights.items()],
    )
    opset = helper.make_opsetid("", 18)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)


def outliers(count: int, factor: float = 40.0) -> np.ndarray:
    """Hidden states (count, T, W) whose channels 3 and 17 are much larger, as CLIP's are."""
    x = np.random.default_rng(1).standard_normal((count, TOKENS, WIDTH)).astype(np.float32)
    x[..., [3, 17]] *= factor
    return x


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = open_plain(model.SerializeToString()).run(None, {"x": x})[0]
    return found


def test_the_graph_computes_the_formula() -> None:
    model, x = block(gelu=True), outliers(4)
    hidden = find_products(model)[1]
    assert hidden.after_gelu and not find_products(model)[0].after_gelu
    records = choose(model, {"x": x}, bound=1.0)
    assert [(item.arithmetic, item.smoothed) for item in records] == [
        ("int8", True),
        ("int8", False),
    ]
    # the second product alone, on what the graph itself feeds it
    fed = onnx.ModelProto()
    fed.CopyFrom(model)
    fed.graph.output.append(onnx.ValueInfoProto(name="a"))
    expected, activations = open_plain(fed.SerializeToString()).run(["y", "a"], {"x": x})
    levels, steps = quantise(numpy_helper.to_array(block(gelu=True).graph.initializer[-1]), 1)
    rows = rounded(activations.reshape(-1, HIDDEN), after_gelu=True)
    mine = rows @ (levels.astype(np.float32) * steps)
    np.testing.assert_allclose(mine.reshape(expected.shape), expected, atol=1e-5)


def test_smoothing_changes_nothing_in_float_and_takes_the_outliers() -> None:
    x = outliers(8)
    whole = run(block(), x)
    folded = block()
    (kept,) = choose(folded, {"x": x}, bound=0.0)
    assert kept.arithmetic == "float32" and kept.smoothed
    np.testing.assert_allclose(run(folded, x), whole, rtol=0, atol=1e-5 * np.abs(whole).max())
    plain = rounded(run_norm(block(), x).reshape(-1, WIDTH), after_gelu=False)
    small = block()
    (smooth,) = choose(small, {"x": x})
    exact = run_norm(block(), x).reshape(-1, WIDTH)
    weight = numpy_helper.to_array(block().graph.initializer[2])
    rough = np.linalg.norm((plain - exact) @ weight) / np.linalg.norm(exact @ weight)
    assert smooth.arithmetic == "int8" and smooth.error < 0.6 * rough


def run_norm(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """What the block's layer norm gives."""
    del model.graph.output[:]
    model.graph.output.append(onnx.ValueInfoProto(name="n"))
    return run(model, x)


def test_a_norm_that_something_else_reads_is_left_alone() -> None:
    model, x = block(), outliers(4)
    model.graph.node.append(helper.make_node("Identity", ["n"], ["tap"]))
    model.graph.output.append(helper.make_tensor_value_info("tap", TensorProto.FLOAT, None))
    before = open_plain(model.SerializeToString()).run(["tap"], {"x": x})[0]
    (record,) = choose(model, {"x": x}, bound=1.0)
    assert not record.smoothed
    np.testing.assert_array_equal(
        open_plain(model.SerializeToString()).run(["tap"], {"x": x})[0], before
    )


def test_a_row_of_zeros_gives_zeros() -> None:
    model = block()
    for name in ("gain", "shift"):
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(WIDTH, np.float32), name))
    choose(model, {"x": outliers(2)}, bound=1.0)
    np.testing.assert_array_equal(run(model, outliers(2)), 0)


def test_the_standards_operators_give_the_same(tmp_path: Path) -> None:
    model, x = block(gelu=True), outliers(3)
    choose(model, {"x": x}, bound=1.0)
    onnx.save(model, str(tmp_path / "m.onnx"))
    graph = Graph()
    graph.join(tmp_path / "m.onnx", "", {})
    graph.declare("x", FLOAT, ["N", TOKENS, WIDTH], out=False)
    graph.declare("y", FLOAT, ["N", TOKENS, WIDTH], out=True)
    assert make_portable(graph) == 2
    written_out = open_plain(graph.serialized()).run(None, {"x": x})[0]
    np.testing.assert_allclose(written_out, run(model, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", ["openai", "siglip"])
def test_attention_becomes_one_node_and_means_the_same(make: str, tmp_path: Path) -> None:
    """open_clip's spelling and timm's; and written out again for other runtimes."""
    backbone = small_backbone(make)
    segment = written(backbone, "image", tmp_path).segments[1]
    model = onnx.load(str(tmp_path / segment.file))
    shape = segment.inputs[0].shape
    x = np.random.default_rng(0).standard_normal((3, *shape), np.float32)
    feeds = {segment.inputs[0].name: x}
    expected = open_plain(model.SerializeToString()).run(None, feeds)[0]
    assert fuse_attention(model) == 1
    operators = {node.op_type for node in model.graph.node}
    assert "MultiHeadAttention" in operators and "Softmax" not in operators
    fused = open_plain(model.SerializeToString())
    scale = np.abs(expected).max()
    np.testing.assert_allclose(fused.run(None, feeds)[0], expected, atol=1e-5 * scale)
    name = segment.inputs[0].name
    alone = fused.run(None, {name: x[:1]})[0]
    np.testing.assert_array_equal(alone, fused.run(None, feeds)[0][:1])
    onnx.save(model, str(tmp_path / "fused.onnx"))
    graph = Graph()
    graph.join(tmp_path / "fused.onnx", "", {})
    graph.declare(name, FLOAT, ["N", *shape], out=False)
    graph.declare(segment.outputs[0].name, FLOAT, ["N", *shape], out=True)
    assert make_portable(graph) == 1
    again = open_plain(graph.serialized()).run([segment.outputs[0].name], feeds)[0]
    np.testing.assert_allclose(again, expected, atol=1e-5 * scale)


def test_attention_with_a_mask_stays(openai: Backbone, tmp_path: Path) -> None:
    segment = written(openai, "text", tmp_path).segments[1]
    model = onnx.load(str(tmp_path / segment.file))
    assert fuse_attention(model) == 0


def tokens(count: int) -> torch.Tensor:
    found = torch.zeros(count, CONTEXT, dtype=torch.int64)
    for row in range(count):
        found[row, : row + 3] = torch.tensor([298, *range(20, 21 + row), 299])
    return found


def calibrated(backbone: Backbone, side: str, folder: Path) -> tuple[TowerRecord, torch.Tensor]:
    size = backbone.image.size
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(4, 3, size, size, generator=generator) if side == "image" else tokens(4)
    taps = resolve_taps(backbone, side, TAPS)
    record = write_segments(backbone, side, taps, TAPS, folder, dtype="int8", calibration=batch)
    return record, batch


@pytest.fixture(scope="module")
def openai() -> Backbone:
    return small_backbone("openai")


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_tower_passes_the_gate_whatever_its_batch(
    openai: Backbone, side: str, tmp_path: Path
) -> None:
    record, batch = calibrated(openai, side, tmp_path)
    products = [item for segment in record.segments for item in segment.products]
    assert len(products) == 4 * (len(record.segments) - 2)  # the embedding's own stays as it is
    assert {item.arithmetic for item in products} == {"int8"}
    checked = check_int8(openai, side, record, TAPS, tmp_path, Batch(batch, "drawn"))
    assert checked.int8 is not None and min(checked.int8.cosines.values()) > 0.999
    assert set(checked.int8.cosines) == {"embedding", *(tap.name for tap in record.taps)}
    assert "products in int8" in int8_gate.spell_int8(checked)
    for segment in record.segments:
        check_model(tmp_path, segment.file)  # nothing that a bundle may not have
    whole = run_segments(record, tmp_path, batch.numpy())
    alone = run_segments(record, tmp_path, batch[1:3].numpy())
    for name in checked.int8.cosines:
        np.testing.assert_array_equal(alone[name], whole[name][1:3])


def test_the_file_is_a_quarter_and_its_memory_is_counted(openai: Backbone, tmp_path: Path) -> None:
    record, _ = calibrated(openai, "image", tmp_path / "small")
    whole = written(openai, "image", tmp_path / "whole")
    for mine, theirs in zip(record.segments[1:-1], whole.segments[1:-1], strict=True):
        assert mine.weight_bytes < 0.4 * theirs.weight_bytes
        assert 0.8 * theirs.activation_bytes < mine.activation_bytes < 1.3 * theirs.activation_bytes


def test_products_that_do_not_bear_it_stay(
    openai: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_choice, "BOUND", 1e-9)
    monkeypatch.setattr(int8_choice.choose, "__defaults__", (1e-9,))
    record, batch = calibrated(openai, "image", tmp_path)
    assert {p.arithmetic for s in record.segments for p in s.products} == {"float32"}
    found = run_segments(record, tmp_path, batch.numpy())["embedding"]
    with torch.no_grad():
        expected = openai.image.whole(batch)["embedding"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_the_gate_refuses_what_is_moved_too_far(openai: Backbone, tmp_path: Path) -> None:
    record, batch = calibrated(openai, "image", tmp_path)
    path = tmp_path / record.segments[2].file
    weights = path.with_suffix(".weights")
    weights.write_bytes(bytes(reversed(weights.read_bytes()[:2048])) + weights.read_bytes()[2048:])
    with pytest.raises(EdgeLadderError, match="int8 moves") as caught:
        check_int8(openai, "image", record, TAPS, tmp_path, Batch(batch, "drawn"))
    assert "--calibration" in str(caught.value.remedy)


def test_cosines_are_of_each_sample() -> None:
    expected = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert least_cosine(expected * 3, expected) == pytest.approx(1)
    assert least_cosine(np.array([[1.0, 0.0], [1.0, 0.0]]), expected) == pytest.approx(0)
