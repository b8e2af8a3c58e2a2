"""Optimisers as element-wise ONNX graphs over a block of the flat parameter vector.

AdamW: Loshchilov & Hutter, arXiv:1711.05101 (decoupled decay). SGD with momentum as torch.optim's.
Scalars (rates, corrections, the clipping factor) are inputs, so one graph serves every step.
Outputs may be written in place of their inputs: `check_aliases` proves it for each pair.
"""

from __future__ import annotations

from edgeladder.host.compile.extent import Shape, symbol
from edgeladder.host.compile.graph import Graph
from edgeladder.host.compile.step import check_aliases

BLOCK = 256  # elements that share one scale, where moments have 8 bits


class _Blocks:
    """Element-wise operators over one shape."""

    def __init__(self, graph: Graph, shape: Shape):
        self.graph, self.shape = graph, shape

    def __call__(self, op: str, *inputs: str) -> str:
        return self.graph.emit(op, inputs, self.shape)


def _named(graph: Graph, value: str, label: str) -> None:
    node = graph.producers()[value]
    graph.declare(label, graph.shapes[value], graph.types[value])
    node.outputs = [label if name == value else name for name in node.outputs]
    graph.rename(value, label)
    graph.outputs.append(label)


def _scalars(graph: Graph, *labels: str) -> None:
    for label in labels:
        graph.add_input(label, ())


def adamw() -> Graph:
    """parameter, gradient, moment1, moment2 (N,) and scalars -> the three updated.

    Arranged for the fewest passes over memory, which is what an update costs. With g the gradient
    and a = (1-beta1) clip:

        m = beta1 m + a g
        u = beta2 u + (a g)^2
        p = p keep - stride m / (sqrt(u) + floor)

    u is the second moment times (1-beta1)^2 / (1-beta2), so that a g serves both. With
    k = sqrt(1-beta2) / ((1-beta1) sqrt(1-beta2^t)), stride = lr / (1-beta1^t) / k,
    floor = epsilon / k and keep = 1 - lr decay this is AdamW.
    """
    graph = Graph("adamw")
    shape = (symbol("N"),)
    do = _Blocks(graph, shape)
    for name in ("parameter", "gradient", "moment1", "moment2"):
        graph.add_input(name, shape)
    _scalars(graph, "beta1", "share", "beta2", "keep", "stride", "floor")
    share = do("Mul", "gradient", "share")
    first = do("Add", do("Mul", "moment1", "beta1"), share)
    second = do("Add", do("Mul", "moment2", "beta2"), do("Mul", share, share))
    ratio = do("Div", first, do("Add", do("Sqrt", second), "floor"))
    kept = do("Mul", "parameter", "keep")
    _named(graph, do("Sub", kept, do("Mul", ratio, "stride")), "parameter_next")
    _named(graph, first, "moment1_next")
    _named(graph, second, "moment2_next")
    check_aliases(graph, {n: f"{n}_next" for n in ("parameter", "moment1", "moment2")})
    return graph


def adamw8() -> Graph:
    """AdamW with moments in 8 bits and one scale per 256 elements: 2 bytes of state, not 8.

    moment1 is int8, linear. moment2 is stored as its root in uint8, rounded up, so that a small
    second moment does not become zero under a first moment that is not (after Dettmers et al.,
    arXiv:2110.02861, blockwise quantisation). Shapes: (N, 256), scales (N,).

    Arranged as `adamw` is, whose u the second moment is; moments are read and written by
    onnxruntime's own quantisation, a row a channel, and the rates of decay are in the scales they
    are read with.
    """
    graph = Graph("adamw8")
    rows = symbol("N")
    shape, scales = (rows, BLOCK), (rows,)
    do, per_row = _Blocks(graph, shape), _Blocks(graph, scales)
    graph.add_input("parameter", shape)
    graph.add_input("gradient", shape)
    graph.add_input("moment1", shape, "int8")
    graph.add_input("scale1", scales)
    graph.add_input("moment2", shape, "uint8")
    graph.add_input("scale2", scales)
    _scalars(graph, "beta1", "share", "beta2", "keep", "stride", "floor")
    axes = graph.constant([1], "int64", "axes")

    def decayed(moment: str, scale: str, rate: str) -> str:
        return graph.emit("DequantizeLinear", [moment, per_row("Mul", scale, rate)], shape, axis=0)

    share = do("Mul", "gradient", "share")
    first = do("Add", decayed("moment1", "scale1", "beta1"), share)
    root = decayed("moment2", "scale2", graph.emit("Sqrt", ["beta2"], ()))
    deviation = do("Sqrt", do("Add", do("Mul", root, root), do("Mul", share, share)))
    ratio = do("Div", first, do("Add", deviation, "floor"))
    kept = do("Mul", "parameter", "keep")
    _named(graph, do("Sub", kept, do("Mul", ratio, "stride")), "parameter_next")

    def scale(size: str, levels: float) -> str:
        largest = graph.emit("ReduceMax", [size, axes], scales, keepdims=0)
        limited = per_row("Max", largest, graph.constant(1e-30))
        return per_row("Mul", limited, graph.constant(1 / levels))

    scale1, scale2 = scale(do("Abs", first), 127.0), scale(deviation, 255.0)
    # by half a level more, rounding is rounding up; the largest, 255 and a half, saturates
    half = per_row("Mul", scale2, graph.constant(0.5))
    raised = do("Add", deviation, graph.emit("Unsqueeze", [half, axes], (rows, 1)))
    zeros = per_row("Mul", scale1, graph.constant(0.0))
    signed = graph.emit("Cast", [zeros], scales, dtype="int8", to=3)  # says which type is made
    stored = [
        graph.emit("QuantizeLinear", [first, scale1, signed], shape, dtype="int8", axis=0),
        scale1,
        graph.emit("QuantizeLinear", [raised, scale2], shape, dtype="uint8", axis=0),
        scale2,
    ]
    pairs = {"parameter": "parameter_next"}
    for source, value in zip(("moment1", "scale1", "moment2", "scale2"), stored, strict=True):
        _named(graph, value, f"{source}_next")
        pairs[source] = f"{source}_next"
    check_aliases(graph, pairs)
    return graph


def sgd() -> Graph:
    """parameter, gradient, moment1 (N,) -> both updated: m = beta1 m + g, p = p keep - rate m."""
    graph = Graph("sgd")
    shape = (symbol("N"),)
    do = _Blocks(graph, shape)
    for name in ("parameter", "gradient", "moment1"):
        graph.add_input(name, shape)
    _scalars(graph, "clip", "beta1", "keep", "rate")
    first = do("Add", do("Mul", "moment1", "beta1"), do("Mul", "gradient", "clip"))
    update = do("Sub", do("Mul", "parameter", "keep"), do("Mul", first, "rate"))
    _named(graph, update, "parameter_next")
    _named(graph, first, "moment1_next")
    check_aliases(graph, {n: f"{n}_next" for n in ("parameter", "moment1")})
    return graph


def norm() -> Graph:
    """gradient (N,) -> its squared norm, for clipping by the global norm."""
    graph = Graph("norm")
    graph.add_input("gradient", (symbol("N"),))
    axes = graph.constant([0], "int64", "axes")
    value = graph.emit("ReduceSumSquare", ["gradient", axes], (), keepdims=0)
    _named(graph, value, "squared_norm")
    return graph
