"""The graphs of a training step: all ways agree with each other and with torch in float64."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from edgeladder.core.errors import EdgeLadderError
from edgeladder.host.compile import simplify, step
from edgeladder.host.compile.extent import combine, symbol
from edgeladder.host.compile.graph import CONTRIB, Graph
from tests.host.compile.ladders import RECIPES, Case, Recipe, case, execute, relative

Arrays = dict[str, np.ndarray]
CLOSE = 1e-4  # relative, per parameter; float32 gives about 1e-5
# The same sums in another order. A gate's gradient is one number that many cancel in: on some
# processors' kernels it is 2.2e-5 apart.
SAME = 4e-5


def run_fused(it: Case, feed: Arrays, *, recompute: bool) -> tuple[float, Arrays]:
    results = execute(step.fused(it.forward, it.trained, recompute=recompute), feed)
    gradients = {name: results[step.gradient_of(name)] for name in it.trained.parameters}
    return float(results["loss"]), gradients


def run_chunked(it: Case, feed: Arrays, chunk: int) -> tuple[float, Arrays]:
    """As the engine does it: encode, loss by embedding, pull back with running sums."""
    graphs = {
        side: (step.encode(it.forward, side), step.backward(it.forward, it.trained, side))
        for side in ("image", "text")
    }
    feed = {**feed, **{step.sum_of(n): np.zeros_like(feed[n]) for n in it.trained.parameters}}

    def windows(graph: Graph, side: str) -> list[Arrays]:
        count = len(feed[f"{side}_embedding"])
        found = []
        for start in range(0, count, chunk):
            part = dict(feed)
            for name in graph.inputs:
                dims = graph.shapes[name]
                for axis, dim in enumerate(dims):
                    if dim == symbol({"image": "B", "text": "C"}[side]):
                        stop = min(start + chunk, count)
                        part[name] = np.take(feed[name], range(start, stop), axis)
            found.append(part)
        return found

    for side, (encode, _) in graphs.items():
        pieces = [execute(encode, part)[side] for part in windows(encode, side)]
        feed[side] = np.concatenate(pieces)
    found = execute(step.loss(it.forward), feed)
    feed.update({name: found[name] for name in ("image_gradient", "text_gradient")})
    for side, (_, pull) in graphs.items():
        for part in windows(pull, side):
            sums = {n: feed[n] for n in pull.inputs if n.startswith("sum/")}
            for name, value in execute(pull, {**part, **sums}).items():
                feed[name.replace("gradient/", "sum/", 1)] = value
    return float(found["loss"]), {n: feed[step.sum_of(n)] for n in it.trained.parameters}


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_fused_recomputed_and_chunked_equal_torch(recipe):
    it = case(recipe)
    state, data = it.random_state(), it.data()
    reference, slopes = it.reference(data, state)
    feed = {**data, **state}
    ways = {
        "fused": run_fused(it, feed, recompute=False),
        "recompute": run_fused(it, feed, recompute=True),
        "chunk 2": run_chunked(it, feed, 2),
    }
    # every parameter is there, with a gradient that tells something
    assert set(slopes) == set(it.trained.parameters) == {n for n, _ in it.ladder.named_parameters()}
    for way, (loss, gradients) in ways.items():
        assert loss == pytest.approx(float(reference["loss"]), rel=1e-5), way
        assert set(gradients) == set(slopes), way
        for name, expected in slopes.items():
            assert np.linalg.norm(expected) > 1e-9, f"{name} has no gradient to compare"
            assert relative(gradients[name], expected) < CLOSE, (way, name)
    for name, expected in ways["fused"][1].items():
        assert relative(ways["chunk 2"][1][name], expected) < SAME, name


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_the_chunk_does_not_change_the_gradients(chunk):
    it = case(RECIPES[0])
    feed = {**it.data(), **it.random_state()}
    loss, gradients = run_chunked(it, feed, chunk)
    expected_loss, expected = run_fused(it, feed, recompute=False)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    for name, value in expected.items():
        assert relative(gradients[name], value) < SAME, name


def test_gradients_at_the_start_are_finite():
    """Zero-initialised outputs, and prompts that never vary: nothing divides by zero."""
    it = case(Recipe("token", "none", "unipt", bits=2, keep=0.5, image=RECIPES[1].image,
                     text=RECIPES[1].text))  # fmt: skip
    state = it.state()
    state["prompts.tokens"][:] = 0.0
    loss, gradients = run_fused(it, {**it.data(), **state}, recompute=False)
    assert np.isfinite(loss)
    for name, value in gradients.items():
        assert np.isfinite(value).all(), name


@pytest.mark.parametrize("recompute", [False, True])
def test_graphs_are_valid_onnx_and_survive_the_file(recompute):
    it = case(RECIPES[0])
    graph = step.fused(it.forward, it.trained, recompute=recompute)
    model = graph.to_onnx()
    ops = {(node.domain, node.op_type) for node in model.graph.node}
    contrib = {op for domain, op in ops if domain}
    assert {domain for domain, _ in ops} <= {"", CONTRIB}
    assert contrib <= {"FusedMatMul", "QuickGelu"}  # what every supported onnxruntime has
    standard = [node for node in model.graph.node if not node.domain]
    for node in standard:
        assert onnx.defs.has(node.op_type, max_inclusive_version=18), node.op_type
    # differentiating what was read back from the file gives the same graph
    again = Graph.from_onnx(it.forward.to_onnx())
    other = step.fused(again, it.trained, recompute=recompute)
    assert [n.op for n in other.nodes] == [n.op for n in graph.nodes]


def test_recomputation_keeps_less():
    it = case(RECIPES[0])
    fused = step.fused(it.forward, it.trained)
    recomputed = step.fused(it.forward, it.trained, recompute=True)
    assert len(recomputed.nodes) > len(fused.nodes)

    def peak(graph: Graph) -> float:
        return max(f + 32 * b + 100 * c for f, b, c in step.peak_lines(graph))

    assert peak(recomputed) < peak(fused)


# -- aliases ------------------------------------------------------------------------------------


def test_an_output_on_its_input_is_refused_where_another_node_may_read_it_later():
    graph = Graph("unsafe")
    graph.add_input("p", (4,))
    graph.add_input("g", (4,))
    following = graph.emit("Sub", ["p", "g"], (4,), hint="next")
    reader = graph.emit("Mul", ["p", "p"], (4,), hint="late_reader")
    graph.outputs = [following, reader]
    with pytest.raises(EdgeLadderError, match="'late_reader' may read it later"):
        step.check_aliases(graph, {"p": following})


def test_an_output_on_its_input_is_allowed_where_all_readers_come_before():
    graph = Graph("safe")
    graph.add_input("p", (4,))
    graph.add_input("g", (4,))
    square = graph.emit("Mul", ["p", "p"], (4,))
    following = graph.emit("Sub", [square, "g"], (4,))
    graph.outputs = [following]
    step.check_aliases(graph, {"p": following})


def test_pull_graphs_may_write_their_sums_in_place():
    it = case(RECIPES[0])
    for side in ("image", "text"):
        graph = step.backward(it.forward, it.trained, side)
        sums = [name for name in graph.inputs if name.startswith("sum/")]
        assert sums and len(sums) == len(graph.outputs)
        for name in sums:
            assert len(graph.consumers()[name]) == 1, name


# -- simplification ------------------------------------------------------------------------------


def test_specialise_drops_what_is_empty():
    batch, classes = symbol("B"), symbol("C")
    rows = combine([(batch, 1), (classes, 1)])
    graph = Graph("joint")
    graph.add_input("x", (batch, 3))
    graph.add_input("y", (classes, 3))
    joined = graph.emit("Concat", ["x", "y"], (rows, 3), axis=0)
    doubled = graph.emit("Add", [joined, joined], (rows, 3))
    first, second = graph.emit_many(
        "Split", [doubled, graph.extent([batch, classes])], [(batch, 3), (classes, 3)], axis=0
    )
    graph.outputs = [first, second]
    simplify.specialise(graph, {"C": 0})
    assert graph.inputs == ["x"]
    assert not {"Concat", "Split"} & {node.op for node in graph.nodes}
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    (result,) = execute(graph, {"x": x}).values()
    np.testing.assert_array_equal(result, 2 * x)


def test_specialise_to_sizes_keeps_the_numbers():
    it = case(RECIPES[0])
    graph = it.forward.copy("static")
    simplify.specialise(graph, {"B": 5, "C": 7})
    assert not graph.extents
    feed = {**it.data(5, 7), **it.random_state()}
    dynamic, static = execute(it.forward, feed), execute(graph, feed)
    for name, value in dynamic.items():
        np.testing.assert_allclose(static[name], value, rtol=1e-6, atol=1e-6)


def test_equal_nodes_merge_within_a_scope_only():
    graph = Graph("equal")
    graph.add_input("x", (2,))
    graph.scope = "a"
    values = [graph.emit("Exp", ["x"], (2,)), graph.emit("Exp", ["x"], (2,))]
    graph.scope = "b"  # a rung computed again must not become the first one
    values.append(graph.emit("Exp", ["x"], (2,)))
    total = graph.emit("Add", values[:2], (2,))
    graph.outputs = [graph.emit("Add", [total, values[2]], (2,))]
    simplify.merge_equal(graph)
    graph.prune()
    assert [(n.op, n.scope) for n in graph.nodes] == [
        ("Exp", "a"), ("Exp", "b"), ("Add", "b"), ("Add", "b")]  # fmt: skip


@pytest.mark.parametrize("recipe", [RECIPES[0], RECIPES[4]], ids=str)
def test_simplification_keeps_the_numbers(recipe):
    it = case(recipe)
    graph = it.forward.copy("simplified")
    simplify.before(graph)
    simplify.after(graph)
    assert len(graph.nodes) < len(it.forward.nodes)
    feed = {**it.data(), **it.random_state()}
    plain, simple = execute(it.forward, feed), execute(graph, feed)
    for name, value in plain.items():
        np.testing.assert_allclose(simple[name], value, rtol=1e-4, atol=1e-5)
