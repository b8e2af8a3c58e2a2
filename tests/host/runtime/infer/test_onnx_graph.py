"""The ONNX reader and writer against the onnx package itself."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.onnx_graph import Graph
from edgeladder.core.protobuf import FLOAT, encode, message, parse, read_tensor

WEIGHT = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def gemm(path, *, opset=18, external=True, weight=WEIGHT, **attributes):
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], **attributes)],
        "gemm",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 3])],
        [
            numpy_helper.from_array(weight, "w"),
            helper.make_tensor("b", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0]),  # typed, not raw
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(
        model, path, save_as_external_data=external, location=path.name + ".data", size_threshold=0
    )
    return path


def run(path, **inputs):
    return onnxruntime.InferenceSession(str(path)).run(None, inputs)[0]


@pytest.mark.parametrize("external", [True, False])
def test_files_joined_by_name_compute_what_they_compute_in_turn(tmp_path, external):
    first = gemm(tmp_path / "a.onnx", external=external)
    square = np.eye(3, dtype=np.float32)[::-1].copy()
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "flip",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", FLOAT, ["N", 3])],
        [numpy_helper.from_array(square, "w")],  # the same names as in the first file
    )
    second = tmp_path / "b.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), second
    )
    joined = Graph()
    joined.declare("x", FLOAT, ["N", 4], out=False)
    joined.join(first, "a/", {"x": "x", "y": "middle"})
    joined.join(second, "b/", {"x": "middle", "y": "logits"})
    joined.add("Softmax", ["logits"], "p", {"axis": -1})
    joined.declare("p", FLOAT, ["N", 3], out=True)
    out = tmp_path / "out.onnx"
    size = joined.write(out, {"classes": '["a"]'}, "edgeladder")
    assert size == out.stat().st_size
    onnx.checker.check_model(str(out), full_check=True)
    assert {p.key: p.value for p in onnx.load(out).metadata_props} == {"classes": '["a"]'}
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    logits = (x @ WEIGHT + [1, 2, 3])[:, ::-1]
    powers = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(run(out, x=x), powers / powers.sum(1, keepdims=True), atol=1e-6)


def test_an_input_can_become_a_constant(tmp_path):
    first = gemm(tmp_path / "a.onnx")
    joined = Graph()
    joined.constant("fixed", np.ones((2, 4), np.float32))
    joined.join(first, "a/", {"x": "fixed", "y": "y"})
    joined.declare("y", FLOAT, [2, 3], out=True)
    joined.write(tmp_path / "o.onnx", {}, "edgeladder")
    np.testing.assert_allclose(
        run(tmp_path / "o.onnx"), np.ones((2, 4)) @ WEIGHT + [1, 2, 3], rtol=1e-6
    )


def test_names_in_subgraphs_follow(tmp_path):
    info = helper.make_tensor_value_info
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["x", "k"], ["r"])],
            name,
            [],
            [info("r", FLOAT, ["N"])],
            [numpy_helper.from_array(np.float32([3]), "k")],
        )
        for name, op in (("then_branch", "Add"), ("else_branch", "Mul"))
    }
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], **branches)],
        "g",
        [info("x", FLOAT, ["N"]), info("c", TensorProto.BOOL, [])],
        [info("y", FLOAT, ["N"])],
    )
    path = tmp_path / "if.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path
    )
    joined = Graph()
    joined.declare("in", FLOAT, ["N"], out=False)
    joined.declare("flag", TensorProto.BOOL, [], out=False)
    joined.join(path, "p/", {"x": "in", "c": "flag", "y": "out"})
    joined.declare("out", FLOAT, ["N"], out=True)
    joined.write(tmp_path / "o.onnx", {}, "edgeladder")
    x = np.float32([1, 2])
    inputs = {"in": x, "flag": np.array(True)}
    assert run(tmp_path / "o.onnx", **inputs).tolist() == [4, 5]
    assert run(tmp_path / "o.onnx", **{**inputs, "flag": np.array(False)}).tolist() == [3, 6]


def test_differing_operator_sets_are_refused(tmp_path):
    joined = Graph()
    joined.join(gemm(tmp_path / "a.onnx", opset=18), "a/", {})
    with pytest.raises(ConfigError, match="operator set ai.onnx 17 and 18"):
        joined.join(gemm(tmp_path / "b.onnx", opset=17), "b/", {})


@pytest.mark.parametrize("content", [b"\xff" * 40, b"\x0a\x7fabc", b""])
def test_what_is_no_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="ONNX"):
        Graph().join(path, "", {})


def test_a_cut_weight_file_leaves_no_result(tmp_path):
    joined = Graph()
    joined.join(gemm(tmp_path / "a.onnx"), "a/", {})
    (tmp_path / "a.onnx.data").write_bytes(b"1234")
    with pytest.raises(IntegrityError, match="cut short"):
        joined.write(tmp_path / "o.onnx", {}, "edgeladder")
    assert not (tmp_path / "o.onnx").exists()


VALUES = st.one_of(st.integers(0, 2**63), st.binary(max_size=300))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 200), VALUES)))
def test_parse_inverts_message(fields):
    assert parse(message(fields)) == fields


@pytest.mark.parametrize(
    "array",
    [
        np.float32([[1.5, -2.0]]),
        np.array([-(2**40), 7], np.int64),
        np.array([-3, 4], np.int32),
        np.array([True, False]),
        np.array(2.5, np.float64),
        np.array([200, 1], np.uint8),
        np.float16([0.5, 3]),
    ],
    ids=lambda a: a.dtype.name,
)
@pytest.mark.parametrize("raw", [True, False])
def test_constants_of_every_kind_are_read(tmp_path, array, raw):
    code = helper.np_dtype_to_tensor_dtype(array.dtype)
    proto = (
        numpy_helper.from_array(array, "k")
        if raw
        else helper.make_tensor("k", code, array.shape, array.reshape(-1).tolist())
    )
    tensor = read_tensor(proto.SerializeToString(), tmp_path)
    assert (tensor.name, tensor.dims, tensor.data_type) == ("k", array.shape, code)
    assert tensor.data == array.tobytes()
    again = TensorProto.FromString(tensor.head() + tensor.data)
    np.testing.assert_array_equal(numpy_helper.to_array(again), array)


def test_fixed_width_fields_pass_unchanged():
    attribute = helper.make_attribute("alpha", 0.25).SerializeToString()
    assert message(parse(attribute)) == attribute
    assert encode(1, "é") == b"\x0a\x02\xc3\xa9"
