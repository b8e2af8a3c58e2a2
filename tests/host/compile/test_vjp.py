"""Each rule of differentiation against torch's autograd and finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from edgeladder.core.errors import EdgeLadderError
from edgeladder.host.compile import vjp
from edgeladder.host.compile.differentiate import Backward, broadcast
from edgeladder.host.compile.extent import Extent, combine, symbol
from edgeladder.host.compile.graph import CONTRIB, Graph
from tests.host.compile.ladders import execute

Draw = Callable[[st.SearchStrategy[Any]], Any]
SIZE = st.integers(1, 4)


@dataclass
class Example:
    """One operator to differentiate.

    Inputs' first axes whose size is in `symbols` are symbolic, as batch and classes are.
    """

    shapes: Sequence[tuple[int, ...]]  # of the inputs that are differentiated
    build: Callable[[Graph, list[str]], str | list[str]]
    torch: Callable[..., torch.Tensor | Sequence[torch.Tensor]]
    low: float = -2.0
    symbolic: Sequence[str | None] = ()  # name of each input's first extent, if it has one
    draw: dict[str, Any] = field(default_factory=dict)


CASES: dict[str, Callable[[Draw], Example]] = {}


def covers(*ops: str) -> Callable[[Callable[[Draw], Example]], Callable[[Draw], Example]]:
    """Register the test of one or more rules."""

    def register(function: Callable[[Draw], Example]) -> Callable[[Draw], Example]:
        for op in ops:
            CASES[op] = function
        return function

    return register


def shape(draw: Draw, low: int = 1, high: int = 3) -> tuple[int, ...]:
    return tuple(draw(st.lists(SIZE, min_size=low, max_size=high)))


def broadcast_to(draw: Draw, whole: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `whole`."""
    kept = [draw(st.sampled_from([size, 1])) for size in whole]
    return tuple(kept[draw(st.integers(0, len(whole))) :])


BINARY = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": torch.div,
}


def binary(op: str) -> Callable[[Draw], Example]:
    def make(draw: Draw) -> Example:
        whole = shape(draw)
        pair = [whole, broadcast_to(draw, whole)]
        if draw(st.booleans()):
            pair.reverse()

        def build(graph: Graph, inputs: list[str]) -> str:
            left, right = (graph.shapes[name] for name in inputs)
            return graph.emit(op, inputs, broadcast(left, right))

        symbolic = ["B" if s == whole and len(s) > 0 else None for s in pair]
        return Example(pair, build, BINARY[op], low=0.3, symbolic=symbolic)

    return make


for _op in BINARY:
    CASES[_op] = binary(_op)

UNARY = {
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Sqrt": torch.sqrt,
    "Sigmoid": torch.sigmoid,
    "QuickGelu": functional.silu,
    "Relu": torch.relu,
    "Identity": torch.clone,
}


def unary(op: str) -> Callable[[Draw], Example]:
    def make(draw: Draw) -> Example:
        def build(graph: Graph, inputs: list[str]) -> str:
            more: dict[str, Any] = {"domain": CONTRIB, "alpha": 1.0} if op == "QuickGelu" else {}
            return graph.emit(op, inputs, graph.shapes[inputs[0]], **more)

        low = 0.3 if op == "Sqrt" else -2.0
        return Example([shape(draw)], build, UNARY[op], low, symbolic=["B"])

    return make


for _op in UNARY:
    CASES[_op] = unary(_op)


@covers("Reshape")
def reshape(draw: Draw) -> Example:
    whole = shape(draw, 2)
    joined = (whole[0], int(np.prod(whole[1:])))

    def build(graph: Graph, inputs: list[str]) -> str:
        return graph.reshape(inputs[0], (graph.shapes[inputs[0]][0], joined[1]))

    return Example([whole], build, lambda x: x.reshape(joined), symbolic=["B"])


@covers("Expand")
def expand(draw: Draw) -> Example:
    rows, middle, columns = draw(SIZE), draw(SIZE), draw(SIZE)

    def build(graph: Graph, inputs: list[str]) -> str:
        target = (graph.shapes[inputs[0]][0], middle, columns)
        return graph.emit("Expand", [inputs[0], graph.extent(target)], target)

    return Example(
        [(rows, 1, columns)], build, lambda x: x.expand(rows, middle, columns), symbolic=["B"]
    )


@covers("Transpose")
def transpose(draw: Draw) -> Example:
    whole = shape(draw, 2, 4)
    order = draw(st.permutations(range(len(whole))))

    def build(graph: Graph, inputs: list[str]) -> str:
        have = graph.shapes[inputs[0]]
        return graph.emit("Transpose", inputs, tuple(have[a] for a in order), perm=list(order))

    return Example([whole], build, lambda x: x.permute(*order), symbolic=["B"])


@covers("Concat")
def concat(draw: Draw) -> Example:
    columns, counts = draw(SIZE), [draw(SIZE) for _ in range(draw(st.integers(1, 3)))]
    along = draw(st.integers(0, 1))
    shapes = [(n, columns) if along == 0 else (columns, n) for n in counts]

    def build(graph: Graph, inputs: list[str]) -> str:
        total = combine([(graph.shapes[name][along], 1) for name in inputs])
        other = graph.shapes[inputs[0]][1 - along]
        return graph.emit("Concat", inputs, (total, other) if along == 0 else (other, total),
                          axis=along)  # fmt: skip

    symbolic = [f"S{i}" for i in range(len(counts))] if along == 0 else ["B"] * len(counts)
    return Example(shapes, build, lambda *x: torch.cat(x, along), symbolic=symbolic)


@covers("Split")
def split(draw: Draw) -> Example:
    sizes = [draw(SIZE) for _ in range(draw(st.integers(1, 3)))]
    rows = draw(SIZE)
    used = draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, unique=True))

    def build(graph: Graph, inputs: list[str]) -> list[str]:
        count = graph.shapes[inputs[0]][0]
        pieces = graph.emit_many(
            "Split", [inputs[0], graph.extent(sizes)], [(count, s) for s in sizes], axis=1
        )
        return [pieces[i] for i in used]  # the rest have no gradient

    return Example(
        [(rows, sum(sizes))],
        build,
        lambda x: [x.split(sizes, 1)[i] for i in used],
        symbolic=["B"],
    )


@covers("Slice")
def slice_(draw: Draw) -> Example:
    whole = shape(draw, 2)
    axis = draw(st.integers(1, len(whole) - 1))
    start = draw(st.integers(0, whole[axis] - 1))
    stop = draw(st.integers(start + 1, whole[axis]))
    written = draw(st.sampled_from([stop, 2**62])) if stop == whole[axis] else stop

    def build(graph: Graph, inputs: list[str]) -> str:
        have = list(graph.shapes[inputs[0]])
        have[axis] = stop - start
        bounds = [graph.constant([v], "int64") for v in (start, written, axis)]
        return graph.emit("Slice", [inputs[0], *bounds], tuple(have))

    return Example([whole], build, lambda x: x.narrow(axis, start, stop - start), symbolic=["B"])


@covers("Gather")
def gather(draw: Draw) -> Example:
    whole = shape(draw)
    rows = draw(st.lists(st.integers(0, whole[0] - 1), min_size=1, max_size=5))

    def build(graph: Graph, inputs: list[str]) -> str:
        index = graph.constant(rows, "int64")
        have = (len(rows), *graph.shapes[inputs[0]][1:])
        return graph.emit("Gather", [inputs[0], index], have, axis=0)

    return Example([whole], build, lambda x: x.index_select(0, torch.tensor(rows)))


def reduction(op: str) -> Callable[[Draw], Example]:
    def make(draw: Draw) -> Example:
        whole = shape(draw)
        axes = draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, unique=True))
        keep = draw(st.booleans())

        def build(graph: Graph, inputs: list[str]) -> str:
            have = graph.shapes[inputs[0]]
            left = tuple(
                1 if a in axes else size for a, size in enumerate(have) if keep or a not in axes
            )
            named = graph.constant(axes, "int64")
            return graph.emit(op, [inputs[0], named], left, keepdims=int(keep))

        function = torch.sum if op == "ReduceSum" else torch.mean
        symbolic = [draw(st.sampled_from(["B", None]))]
        return Example([whole], build, lambda x: function(x, axes, keep), symbolic=symbolic)

    return make


for _op in ("ReduceSum", "ReduceMean"):
    CASES[_op] = reduction(_op)


def softmax(op: str) -> Callable[[Draw], Example]:
    def make(draw: Draw) -> Example:
        def build(graph: Graph, inputs: list[str]) -> str:
            return graph.emit(op, inputs, graph.shapes[inputs[0]], axis=-1)

        function = torch.softmax if op == "Softmax" else torch.log_softmax
        return Example([shape(draw, 2)], build, lambda x: function(x, -1), symbolic=["B"])

    return make


for _op in ("Softmax", "LogSoftmax"):
    CASES[_op] = softmax(_op)


@covers("LayerNormalization")
def layer_norm(draw: Draw) -> Example:
    whole = (*shape(draw, 1, 2), draw(st.integers(3, 8)))

    def build(graph: Graph, inputs: list[str]) -> str:
        have = graph.shapes[inputs[0]]
        ones = graph.constant(np.ones(whole[-1]))
        zeros = graph.constant(np.zeros(whole[-1]))
        reduced = (*have[:-1], 1)
        return graph.emit_many(
            "LayerNormalization", [inputs[0], ones, zeros], [have, reduced, reduced],
            axis=-1, epsilon=1e-5,
        )[0]  # fmt: skip

    return Example(
        [whole], build, lambda x: functional.layer_norm(x, whole[-1:], eps=1e-5), symbolic=["B"]
    )


@covers("Gemm")
def gemm(draw: Draw) -> Example:
    rows, inner, columns = draw(SIZE), draw(SIZE), draw(SIZE)
    shapes: list[tuple[int, ...]] = [(rows, inner), (inner, columns)]
    bias = draw(st.sampled_from([None, (columns,), (1, columns), (rows, columns)]))
    if bias is not None:
        shapes.append(bias)

    def build(graph: Graph, inputs: list[str]) -> str:
        return graph.emit("Gemm", inputs, (graph.shapes[inputs[0]][0], columns))

    symbolic = ["B", None, "B" if bias == (rows, columns) and rows != 1 else None]
    return Example(
        shapes,
        build,
        lambda left, right, *more: left @ right + (more[0] if more else 0.0),
        symbolic=symbolic if rows != 1 else [None] * 3,
    )


@covers("MatMul")
def matmul(draw: Draw) -> Example:
    rows, inner, columns = draw(SIZE), draw(SIZE), draw(SIZE)
    lead = draw(st.sampled_from([(), (2,), (3, 2)]))

    def build(graph: Graph, inputs: list[str]) -> str:
        return graph.emit("MatMul", inputs, (*graph.shapes[inputs[0]][:-1], columns))

    return Example(
        [(*lead, rows, inner), (*lead, inner, columns)],
        build,
        torch.matmul,
        symbolic=["B", "B" if lead else None],
    )


@covers("FusedMatMul")
def fused_matmul(draw: Draw) -> Example:
    rows, inner, columns, batch = draw(SIZE), draw(SIZE), draw(SIZE), draw(st.integers(1, 3))
    flat = draw(st.booleans())
    flags = {f"trans{x}": draw(st.booleans()) for x in "AB"}
    flags |= {f"transBatch{x}": not flat and draw(st.booleans()) for x in "AB"}

    def operand(letter: str, shape: tuple[int, int]) -> tuple[int, ...]:
        """How an operand lies that is read as (batch, *shape)."""
        first, second = shape[::-1] if flags[f"trans{letter}"] else shape
        if flat:
            return (first, second)
        if flags[f"transBatch{letter}"]:
            return (first, batch, second)
        return (batch, first, second)

    def read(letter: str, value: torch.Tensor) -> torch.Tensor:
        if flags[f"transBatch{letter}"]:
            value = value.transpose(0, 1)
        return value.transpose(-1, -2) if flags[f"trans{letter}"] else value

    def build(graph: Graph, inputs: list[str]) -> str:
        out = (rows, columns) if flat else (batch, rows, columns)
        given = {key: 1 for key, value in flags.items() if value}
        return graph.emit("FusedMatMul", inputs, out, domain=CONTRIB, **given)

    return Example(
        [operand("A", (rows, inner)), operand("B", (inner, columns))],
        build,
        lambda left, right: torch.matmul(read("A", left), read("B", right)),
    )


def pull_back(
    example: Example, values: Sequence[np.ndarray], directions: Sequence[np.ndarray] | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The operator's outputs and, for gradients of these, those of its inputs."""
    graph = Graph("rule")
    inputs = []
    for index, size in enumerate(example.shapes):
        named = example.symbolic[index] if index < len(example.symbolic) else None
        dims: tuple[int | Extent, ...] = (symbol(named), *size[1:]) if named and size else size
        inputs.append(graph.add_input(f"x{index}", dims))
    feed = {f"x{index}": value for index, value in enumerate(values)}
    made = example.build(graph, inputs)
    outputs = [made] if isinstance(made, str) else list(made)
    published = [graph.emit("Identity", [o], graph.shapes[o], hint="out") for o in outputs]
    found: dict[str, str] = {}
    if directions is not None:
        seeds = {}
        for index, output in enumerate(outputs):
            seeds[output] = graph.add_input(f"dy{index}", graph.shapes[output])
            feed[f"dy{index}"] = directions[index]
        backward = Backward(graph, inputs, vjp.RULES)
        found = backward.run(seeds, inputs)
    slopes = [
        graph.emit("Identity", [found[name]], graph.shapes[found[name]], hint="slope")
        for name in found
    ]
    for name, gradient in found.items():
        assert graph.shapes[gradient] == graph.shapes[name], "the gradient has its input's shape"
    graph.outputs = [*published, *slopes]
    graph.prune()
    results = list(execute(graph, feed).values())
    return results[: len(outputs)], results[len(outputs) :]


@pytest.mark.parametrize("op", sorted(vjp.RULES))
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_rule(op, data):
    assert op in CASES, f"the rule of {op} has no test: add one to CASES"
    example = CASES[op](data.draw)
    random = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    values = []
    for size in example.shapes:
        value = random.uniform(max(example.low, 0.3), 2.0, size)  # away from kinks and poles
        if example.low < 0:
            value *= random.choice([-1.0, 1.0], size)
        values.append(np.asarray(value, np.float32))

    tensors = [torch.from_numpy(v).double().requires_grad_() for v in values]
    result = example.torch(*tensors)
    reference = [result] if isinstance(result, torch.Tensor) else list(result)
    directions = [np.asarray(random.normal(size=r.shape), np.float32) for r in reference]
    torch.autograd.backward(reference, [torch.from_numpy(d).double() for d in directions])

    outputs, slopes = pull_back(example, values, directions)
    for output, expected in zip(outputs, reference, strict=True):
        np.testing.assert_allclose(output, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    for slope, tensor in zip(slopes, tensors, strict=True):
        expected = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
        np.testing.assert_allclose(slope, expected.numpy(), rtol=1e-4, atol=1e-5)

    # finite differences of our own operator along a random direction
    step = 1e-2
    along = [random.normal(size=v.shape) for v in values]
    ends = []
    for sign in (1, -1):
        moved = [v + sign * step * a / 3 for v, a in zip(values, along, strict=True)]
        ends.append(pull_back(example, [np.asarray(m, np.float32) for m in moved], None)[0])
    rise = sum(
        float(np.sum((high.astype(float) - low) * d))
        for high, low, d in zip(*ends, directions, strict=True)
    )
    expected_rise = sum(
        float(np.sum(s.astype(float) * a)) for s, a in zip(slopes, along, strict=True)
    )
    size = sum(float(np.abs(s.astype(float) * a).sum()) for s, a in zip(slopes, along, strict=True))
    assert rise * 3 / (2 * step) == pytest.approx(expected_rise, abs=1e-2 * size + 5e-3)


def test_every_test_has_its_rule():
    assert set(CASES) == set(vjp.RULES)


def test_an_operator_without_rule_is_named():
    graph = Graph("odd")
    graph.add_input("x", (2,))
    graph.scope = "rungs.3"
    y = graph.emit("Cos", ["x"], (2,))
    seed = graph.add_input("dy", (2,))
    with pytest.raises(EdgeLadderError, match="no vector-Jacobian product for operator 'Cos'") as e:
        Backward(graph, ["x"], vjp.RULES).run({y: seed}, ["x"])
    assert "rungs.3/cos" in str(e.value.where)


def test_a_parameter_that_the_loss_does_not_read_is_named():
    graph = Graph("idle")
    graph.add_input("x", (2,))
    graph.add_input("idle", (2,))
    y = graph.emit("Neg", ["x"], (2,))
    seed = graph.add_input("dy", (2,))
    with pytest.raises(EdgeLadderError, match="does not depend on parameter 'idle'"):
        Backward(graph, ["x", "idle"], vjp.RULES).run({y: seed}, ["x", "idle"])


def test_a_gather_of_columns_is_refused():
    graph = Graph("columns")
    graph.add_input("x", (2, 3))
    y = graph.emit("Gather", ["x", graph.constant([0], "int64")], (2, 1), axis=1)
    seed = graph.add_input("dy", (2, 1))
    with pytest.raises(EdgeLadderError, match="another axis than the first"):
        Backward(graph, ["x"], vjp.RULES).run({y: seed}, ["x"])


@pytest.mark.parametrize("right", [(4, 5), (1, 4, 5)])
def test_products_that_broadcast_over_the_batch_are_refused(right):
    graph = Graph("ranks")
    graph.add_input("x", (2, 3, 4))
    graph.add_input("w", right)
    y = graph.emit("MatMul", ["x", "w"], (2, 3, 5))
    seed = graph.add_input("dy", (2, 3, 5))
    with pytest.raises(EdgeLadderError, match="broadcast one operand over the other's batch"):
        Backward(graph, ["x"], vjp.RULES).run({y: seed}, ["x"])


@pytest.mark.parametrize("width", [5, 33])
def test_softmax_of_short_and_long_rows(width):
    graph = Graph("softmax")
    graph.add_input("x", (3, width))
    graph.add_input("dy", (3, width))
    y = graph.emit("Softmax", ["x"], (3, width), axis=-1)
    found = Backward(graph, ["x"], vjp.RULES).run({y: "dy"}, ["x"])
    graph.outputs = [found["x"]]
    draw = np.random.default_rng(0)
    feed = {name: draw.normal(size=(3, width)).astype(np.float32) for name in ("x", "dy")}
    x = torch.from_numpy(feed["x"]).double().requires_grad_()
    torch.softmax(x, -1).backward(torch.from_numpy(feed["dy"]).double())
    np.testing.assert_allclose(execute(graph, feed)[found["x"]], x.grad, atol=1e-6)


def test_a_value_read_twice_gets_the_sum():
    graph = Graph("twice")
    graph.add_input("x", (3,))
    graph.add_input("dy", (3,))
    y = graph.emit("Mul", ["x", "x"], (3,))
    found = Backward(graph, ["x"], vjp.RULES).run({y: "dy"}, ["x"])
    graph.outputs = [found["x"]]
    feed = {"x": np.array([1, 2, 3], np.float32), "dy": np.array([1, 10, 100], np.float32)}
    np.testing.assert_allclose(execute(graph, feed)[found["x"]], [2, 40, 600])


def test_detach_stops_gradients():
    graph = Graph("stopped")
    graph.add_input("x", (3,))
    graph.add_input("dy", (3,))
    held = graph.emit("Identity", ["x"], (3,), hint="stop_gradient")
    y = graph.emit("Mul", ["x", held], (3,))
    found = Backward(graph, ["x"], vjp.RULES).run({y: "dy"}, ["x"])
    graph.outputs = [found["x"]]
    feed = {"x": np.array([1, 2, 3], np.float32), "dy": np.ones(3, np.float32)}
    np.testing.assert_allclose(execute(graph, feed)[found["x"]], [1, 2, 3])
