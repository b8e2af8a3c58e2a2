"""The graph: constants, names, pruning, and the way to ONNX and back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeladder.host.compile.extent import combine, symbol
from edgeladder.host.compile.graph import CONTRIB, Graph
from tests.host.compile.ladders import RECIPES, case, execute

B, C = symbol("B"), symbol("C")


def sample() -> Graph:
    """Rows of two symbolic counts, joined, split and expanded again."""
    graph = Graph("sample")
    graph.add_input("x", (B, 3))
    graph.add_input("y", (C, 3))
    graph.scope = "rungs.1"
    rows = combine([(B, 2), (C, 1)])
    joined = graph.emit("Concat", ["x", "y", "x"], (rows, 3), axis=0)
    sizes = graph.extent([combine([(B, 1), (C, 1)]), B])
    first, second = graph.emit_many(
        "Split", [joined, sizes], [(combine([(B, 1), (C, 1)]), 3), (B, 3)], axis=0
    )
    wide = graph.emit(
        "Expand", [graph.reshape(first, (combine([(B, 1), (C, 1)]), 1, 3)),
                   graph.extent([combine([(B, 1), (C, 1)]), 2, 3])],
        (combine([(B, 1), (C, 1)]), 2, 3),
    )  # fmt: skip
    silu = graph.emit("QuickGelu", [second], (B, 3), domain=CONTRIB, alpha=1.0)
    graph.outputs = [wide, silu]
    return graph


def same(left: Graph, right: Graph) -> None:
    """Assert that two graphs are one."""
    assert (left.inputs, left.outputs) == (right.inputs, right.outputs)
    key = ("op", "domain", "inputs", "outputs", "scope")
    as_tuples = [[tuple(getattr(n, k) for k in key) for n in g.nodes] for g in (left, right)]
    assert as_tuples[0] == as_tuples[1]
    for a, b in zip(left.nodes, right.nodes, strict=True):
        assert {k: _plain(v) for k, v in a.attributes.items()} == {
            k: _plain(v) for k, v in b.attributes.items()
        }, a.name
    used = {n for node in left.nodes for n in (*node.inputs, *node.outputs) if n}
    for name in used:
        assert left.types[name] == right.types[name], name
        assert left.shapes[name] == right.shapes[name], name
    assert left.extents == right.extents


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return list(value)
    return pytest.approx(value, rel=1e-6) if isinstance(value, float) else value


def test_onnx_round_trip():
    graph = sample()
    model = graph.to_onnx()
    onnx.checker.check_model(model, full_check=True)
    again = Graph.from_onnx(model)
    same(graph, again)
    random = np.random.default_rng(0)
    feed = {"x": random.normal(size=(2, 3)), "y": random.normal(size=(4, 3))}
    feed = {name: value.astype(np.float32) for name, value in feed.items()}
    for mine, theirs in zip(
        execute(graph, feed).values(), execute(again, feed).values(), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("recipe", RECIPES[:2], ids=str)
def test_onnx_round_trip_of_a_ladder(recipe):
    graph = case(recipe).forward
    model = graph.to_onnx()
    again = Graph.from_onnx(model)
    same(graph, again)
    assert len(again.to_onnx().graph.node) == len(model.graph.node)


def test_symbolic_sizes_are_computed_where_they_are_needed():
    feed = {"x": np.ones((2, 3), np.float32), "y": np.zeros((5, 3), np.float32)}
    wide, silu = execute(sample(), feed).values()
    assert wide.shape == (7, 2, 3) and silu.shape == (2, 3)


def test_node_names_are_unique():
    graph = Graph("names")
    graph.add_input("x", (2,))
    value = "x"
    for _ in range(3):
        value = graph.emit("Neg", [value], (2,))
    graph.outputs = [value]
    names = [node.name for node in graph.to_onnx().graph.node]
    assert len(set(names)) == 3


def test_equal_constants_are_one_and_others_are_not():
    graph = Graph("constants")
    one = graph.constant(1.0)
    assert graph.constant(1.0) == one
    assert len({one, graph.constant([1.0]), graph.constant(1, "int64"), graph.constant(2.0)}) == 4
    assert graph.extent([2, 3]) == graph.extent([2, 3])
    assert graph.extent([B]) == graph.extent([B]) != graph.extent([C])


def test_prune_keeps_what_outputs_need():
    graph = sample()
    graph.outputs = graph.outputs[1:]
    graph.prune()
    assert [node.op for node in graph.nodes] == ["Concat", "Split", "QuickGelu"]
    assert len(graph.extents) == 1


def test_a_copy_is_its_own():
    graph = sample()
    other = graph.copy("other")
    other.rename("x", "y")
    other.nodes[0].attributes["axis"] = 1
    other.emit("Neg", ["y"], (C, 3))
    same(graph, sample())


def test_a_symbol_that_no_input_has_is_an_error():
    graph = Graph("lost")
    graph.add_input("x", (combine([(B, 2)]), 3))
    graph.outputs = [graph.emit("Expand", ["x", graph.extent([B, 3])], (B, 3))]
    with pytest.raises(ValueError, match="no input of lost has extent B"):
        graph.to_onnx()


def test_bytes_of_a_value():
    graph = sample()
    assert graph.bytes_of(graph.outputs[0], {"B": 2, "C": 5}) == 7 * 2 * 3 * 4
