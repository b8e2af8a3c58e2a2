"""A joined graph in operators of the ONNX standard alone, for runtimes other than onnxruntime.

The ladder's graphs use two of onnxruntime's own operators (domain com.microsoft) and int8 towers
two others, which its documentation of contrib operators defines. Written out:

    FusedMatMul   alpha * op(A) op(B), where op moves the first axis behind the batch axes
                  (transBatch) and then swaps the last two (trans): Transpose, MatMul, Mul
    QuickGelu     x sigmoid(alpha x): Mul, Sigmoid, Mul
    MatMulIntegerToFloat
                  (A - a) B in int32, times a scale of A and one for each column of B:
                  MatMulInteger, Cast, Mul
    MultiHeadAttention
                  heads of softmax(scale Q K^T) V: Reshape, Transpose, MatMul, Mul, Softmax

The same numbers come out, a little slower in onnxruntime.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from edgeladder.core.errors import ConfigError, EdgeLadderError
from edgeladder.core.onnx_graph import Graph
from edgeladder.core.operators import DEFAULT_DOMAINS
from edgeladder.core.protobuf import FLOAT, Fields, parse, text

_QUICK_GELU_ALPHA = 1.702  # onnxruntime's default


def make_portable(graph: Graph) -> int:
    """Write out what is not of the standard; returns how many nodes were.

    Raises:
        ConfigError: an operator, or a function of a library, that this does not know.
        EdgeLadderError: the bundle does not tell a product's number of axes.
    """
    nodes, changed = graph.nodes, 0
    graph.nodes = []
    for node in nodes:
        fields = parse(node)
        domain, operator = _text(fields, 7), _text(fields, 4)
        if domain in DEFAULT_DOMAINS:
            graph.nodes.append(node)
            continue
        write = _WRITERS.get(operator) if domain == "com.microsoft" else None
        if write is None:
            raise ConfigError(
                f"{domain}.{operator} is no operator of the ONNX standard",
                where="--portable",
                remedy="deploy without --portable, or export the bundle again",
            )
        write(graph, fields)
        changed += 1
    graph.opsets = {name: number for name, number in graph.opsets.items() if name == ""}
    return changed


def _fused_matmul(graph: Graph, fields: Fields) -> None:
    left, right, output = *_names(fields, 1), _text(fields, 2)
    chosen, alpha = _attributes(fields)
    sides = []
    for letter, name in (("A", left), ("B", right)):
        moves = chosen.get(f"transBatch{letter}", 0), chosen.get(f"trans{letter}", 0)
        if not any(moves):
            sides.append(name)
            continue
        order = permutation(_rank(graph, name), batch=bool(moves[0]), swap=bool(moves[1]))
        turned = order == sorted(order)
        sides.append(name if turned else graph.add("Transpose", [name], attributes={"perm": order}))
    if alpha in (None, 1.0):
        graph.add("MatMul", sides, output)
        return
    factor = graph.constant(f"{output}/alpha", np.array(alpha, np.float32))
    graph.add("Mul", [graph.add("MatMul", sides), factor], output)


def permutation(rank: int, *, batch: bool, swap: bool) -> list[int]:
    """The axes of an input in the order in which MatMul takes them."""
    order = [*range(1, rank - 1), 0, rank - 1] if batch else list(range(rank))
    if swap:
        order[-2:] = reversed(order[-2:])
    return order


def _quick_gelu(graph: Graph, fields: Fields) -> None:
    (name,), output = _names(fields, 1), _text(fields, 2)
    _, alpha = _attributes(fields)
    slope = np.array(_QUICK_GELU_ALPHA if alpha is None else alpha, np.float32)
    inner = graph.add("Mul", [name, graph.constant(f"{output}/alpha", slope)])
    graph.add("Mul", [name, graph.add("Sigmoid", [inner])], output)


def _int8_matmul(graph: Graph, fields: Fields) -> None:
    """Of the form that export writes: the scale of A is one, B has no zero point, and no bias."""
    levels, weight, _, columns, *zero = _names(fields, 1)
    total = graph.add("MatMulInteger", [levels, weight, *zero[:1]])
    wide = graph.add("Cast", [total], attributes={"to": FLOAT})
    graph.add("Mul", [wide, columns], _text(fields, 2))


def _attention(graph: Graph, fields: Fields) -> None:
    """Of the form that export writes: queries, keys and values apart, no bias, no mask."""
    output = _text(fields, 2)
    chosen, scale = _attributes(fields, "scale")
    split = np.array([0, 0, chosen["num_heads"], -1], np.int64)
    shape = graph.constant(f"{output}/heads", split)
    sides = []
    for name, order in zip(
        _names(fields, 1), ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True
    ):
        heads = graph.add("Reshape", [name, shape])
        sides.append(graph.add("Transpose", [heads], attributes={"perm": order}))
    factor = graph.constant(f"{output}/scale", np.array(scale, np.float32))
    scores = graph.add("MatMul", [graph.add("Mul", [sides[0], factor]), sides[1]])
    shares = graph.add("Softmax", [scores], attributes={"axis": -1})
    mixed = graph.add("MatMul", [shares, sides[2]])
    turned = graph.add("Transpose", [mixed], attributes={"perm": [0, 2, 1, 3]})
    together = graph.constant(f"{output}/width", np.array([0, 0, -1], np.int64))
    graph.add("Reshape", [turned, together], output)


_WRITERS: dict[str, Callable[[Graph, Fields], None]] = {
    "FusedMatMul": _fused_matmul,
    "MatMulIntegerToFloat": _int8_matmul,
    "MultiHeadAttention": _attention,
    "QuickGelu": _quick_gelu,
}


def _rank(graph: Graph, name: str) -> int:
    """Number of axes of a constant, or of a tensor that its file describes."""
    if name in graph.tensors:
        return len(graph.tensors[name].dims)
    if name in graph.ranks:
        return graph.ranks[name]
    raise EdgeLadderError(
        f"the bundle does not say how many axes {name!r} has",
        where="--portable",
        remedy="export the bundle again with this version, or deploy without --portable",
    )


def _attributes(fields: Fields, factor: str = "alpha") -> tuple[dict[str, int], float | None]:
    """A node's whole-number attributes, and the one that it multiplies by."""
    whole: dict[str, int] = {}
    alpha = None
    for number, value in fields:
        if number == 5 and isinstance(value, bytes):
            attribute = parse(value)
            name = _text(attribute, 1)
            for place, given in attribute:
                if place == 3 and isinstance(given, int):
                    whole[name] = given
                elif place == -2 and isinstance(given, bytes) and name == factor:
                    alpha = float(struct.unpack("<f", given)[0])
    return whole, alpha


def _names(fields: Fields, number: int) -> list[str]:
    return [text(value) for place, value in fields if place == number]


def _text(fields: Fields, number: int) -> str:
    return next((text(value) for place, value in fields if place == number), "")
