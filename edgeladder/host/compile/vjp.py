"""One vector-Jacobian product per operator.

A rule gets the node and the gradients of its outputs and emits ordinary ONNX operators that give
the gradients of its inputs. `Backward.saved(value)` is how a rule reads a forward value: it may be
the value itself, or one computed again to let the first die early.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgeladder.core.errors import EdgeLadderError
from edgeladder.host.compile.differentiate import Backward, Gradient, Rule, is_stop, zeros
from edgeladder.host.compile.extent import Extent, Shape
from edgeladder.host.compile.graph import CONTRIB, Node

RULES: dict[str, Rule] = {}
_SHORT = 32  # rows up to this length are summed by a product with ones


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register the rule of one or more operators."""

    def register(function: Rule) -> Rule:
        for op in ops:
            RULES[op] = function
        return function

    return register


def _one(gradients: list[Gradient]) -> str:
    assert gradients[0] is not None
    return gradients[0]


@rule("Add")
def _add(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = l + r: dl = dy, dr = dy."""
    g = _one(gradients)
    return [b.unbroadcast(g, b.shape(n)) if b.needs(n) else None for n in node.inputs]


@rule("Sub")
def _sub(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = l - r: dl = dy, dr = -dy."""
    g, (left, right) = _one(gradients), node.inputs
    dl = b.unbroadcast(g, b.shape(left)) if b.needs(left) else None
    dr = None
    if b.needs(right):
        summed = b.unbroadcast(g, b.shape(right))
        dr = b.emit("Neg", [summed], b.shape(right))
    return [dl, dr]


@rule("Mul")
def _mul(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = l r: dl = dy r, dr = dy l."""
    g, (left, right) = _one(gradients), node.inputs
    found: list[Gradient] = []
    for this, other in ((left, right), (right, left)):
        if not b.needs(this):
            found.append(None)
            continue
        found.append(b.unbroadcast(b.binary("Mul", g, b.saved(other)), b.shape(this)))
    return found


@rule("Div")
def _div(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = l / r: dl = dy / r, dr = -dy y / r."""
    g, (left, right) = _one(gradients), node.inputs
    over = b.binary("Div", g, b.saved(right))
    dl = b.unbroadcast(over, b.shape(left)) if b.needs(left) else None
    dr = None
    if b.needs(right):
        summed = b.unbroadcast(b.binary("Mul", over, b.saved(node.outputs[0])), b.shape(right))
        dr = b.emit("Neg", [summed], b.shape(right))
    return [dl, dr]


@rule("Neg")
def _neg(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = -x: dx = -dy."""
    return [b.emit("Neg", [_one(gradients)], b.shape(node.inputs[0]))]


@rule("Exp")
def _exp(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = exp x: dx = dy y."""
    return [b.binary("Mul", _one(gradients), b.saved(node.outputs[0]))]


@rule("Sqrt")
def _sqrt(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = sqrt x: dx = dy / 2y."""
    half = b.binary("Mul", _one(gradients), b.number(0.5))
    return [b.binary("Div", half, b.saved(node.outputs[0]))]


@rule("Sigmoid")
def _sigmoid(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = sigma(x): dx = dy y (1 - y)."""
    y = b.saved(node.outputs[0])
    derivative = b.binary("Mul", y, b.binary("Sub", b.number(1.0), y))
    return [b.binary("Mul", _one(gradients), derivative)]


@rule("QuickGelu")
def _silu(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = x sigma(x): dx = dy (sigma + y (1 - sigma)), sigma and y computed again."""
    sigmoid = b.activate(node)
    y = b.saved(node.outputs[0])
    rest = b.binary("Mul", y, b.binary("Sub", b.number(1.0), sigmoid))
    return [b.binary("Mul", _one(gradients), b.binary("Add", sigmoid, rest))]


@rule("Relu")
def _relu(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = max(x, 0): dx = dy where y > 0, else 0."""
    shape = b.shape(node.inputs[0])
    positive = b.emit("Greater", [b.saved(node.outputs[0]), b.number(0.0)], shape, dtype="bool")
    return [b.emit("Where", [positive, _one(gradients), b.number(0.0)], shape)]


@rule("Identity")
def _identity(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = x: dx = dy, unless it stops gradients."""
    return [None if is_stop(node) else _one(gradients)]


@rule("Reshape")
def _reshape(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """dx = dy in x's shape."""
    return [b.graph.reshape(_one(gradients), b.shape(node.inputs[0])), None]


@rule("Expand")
def _expand(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """dx = dy summed over the expanded axes."""
    return [b.unbroadcast(_one(gradients), b.shape(node.inputs[0])), None]


@rule("Transpose")
def _transpose(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """dx = dy with the inverse permutation."""
    order = list(node.attributes["perm"])
    inverse = [order.index(axis) for axis in range(len(order))]
    return [b.emit("Transpose", [_one(gradients)], b.shape(node.inputs[0]), perm=inverse)]


@rule("Concat")
def _concat(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """The gradient is split as the inputs were joined."""
    axis = node.attributes["axis"]
    shapes = [b.shape(name) for name in node.inputs]
    sizes = b.graph.extent([shape[axis] for shape in shapes])
    return list(b.graph.emit_many("Split", [_one(gradients), sizes], shapes, axis=axis))


@rule("Split")
def _split(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """The gradients are joined as the input was split; zeros for pieces without one."""
    parts = [
        g if g is not None else zeros(b, b.shape(output))
        for g, output in zip(gradients, node.outputs, strict=True)
    ]
    shape, axis = b.shape(node.inputs[0]), node.attributes["axis"]
    return [b.emit("Concat", parts, shape, axis=axis), None]


@rule("Slice")
def _slice(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """Zeros around the gradient, along the one axis of the slice.

    Raises:
        EdgeLadderError: the slice has a step.
    """
    if len(node.inputs) > 4:
        raise EdgeLadderError(
            "a slice with a step has no derivative here",
            where=node.scope or node.outputs[0],
            remedy="write the ladder with contiguous slices",
        )
    start, stop, axis = (int(b.graph.constants[name][0]) for name in node.inputs[1:4])
    shape = b.shape(node.inputs[0])
    size = shape[axis]
    assert isinstance(size, int)
    stop = min(stop, size)
    parts = [_one(gradients)]
    if start:
        parts.insert(0, zeros(b, (*shape[:axis], start, *shape[axis + 1 :])))
    if stop < size:
        parts.append(zeros(b, (*shape[:axis], size - stop, *shape[axis + 1 :])))
    joined = parts[0] if len(parts) == 1 else b.emit("Concat", parts, shape, axis=axis)
    return [joined, *[None] * (len(node.inputs) - 1)]


@rule("Gather")
def _gather(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """y = x[i]: dx = zeros with dy added at the rows i.

    Raises:
        EdgeLadderError: it gathers along another axis than the first.
    """
    x, index = node.inputs
    if node.attributes.get("axis", 0) != 0:
        raise EdgeLadderError(
            "a gather along another axis than the first has no derivative here",
            where=node.scope or node.outputs[0],
            remedy="write the ladder with gathers of rows",
        )
    (count,) = b.shape(index)
    shape = b.shape(x)
    places = b.graph.reshape(index, (count, 1))
    filled = b.emit("ScatterND", [zeros(b, shape), places, _one(gradients)], shape, reduction="add")
    return [filled, None]


@rule("ReduceSum", "ReduceMean")
def _reduce(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """dx = dy (over n, for a mean) along the reduced axes."""
    g, shape = _one(gradients), b.shape(node.inputs[0])
    axes = [int(axis) for axis in b.graph.constants[node.inputs[1]]]
    if node.op == "ReduceMean":
        count = 1
        for axis in axes:
            size = shape[axis]
            if isinstance(size, int):
                count *= size
                continue
            g = b.binary("Div", g, _length(b, node.inputs[0], axis))
        g = b.binary("Mul", g, b.number(1.0 / count)) if count != 1 else g
    kept = tuple(1 if axis in axes else dim for axis, dim in enumerate(shape))
    wide = b.graph.reshape(g, kept)
    return [b.emit("Expand", [wide, b.graph.extent(shape)], shape), None]


def _length(b: Backward, value: str, axis: int) -> str:
    """A symbolic extent as a float scalar."""
    size = b.graph.extent([b.shape(value)[axis]])
    return b.graph.reshape(b.emit("Cast", [size], (1,), to=1), ())


@rule("Softmax")
def _softmax(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """dx = y (dy - sum(dy y)), over the last axis."""
    y = b.saved(node.outputs[0])
    weighted = b.binary("Mul", _one(gradients), y)
    shape = b.shape(y)
    width = shape[-1]
    if isinstance(width, int) and width <= _SHORT:
        # sums in every place of a row at once: a product with ones, and no slow broadcast of rows
        # that are shorter than a vector register
        square = b.graph.constant(np.ones((width, width), np.float32), hint="ones")
        total = b.emit("MatMul", [weighted, square], shape)
    else:
        total = b.reduce("ReduceSum", weighted, [-1], keep=True)
    return [b.binary("Sub", weighted, b.binary("Mul", y, total))]


@rule("LogSoftmax")
def _log_softmax(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """dx = dy - softmax(x) sum(dy), over the last axis."""
    y = b.saved(node.outputs[0])
    total = b.reduce("ReduceSum", _one(gradients), [-1], keep=True)
    share = b.binary("Mul", b.emit("Exp", [y], b.shape(y)), total)
    return [b.binary("Sub", _one(gradients), share)]


@rule("LayerNormalization")
def _layer_norm(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """dx = inv (dy - mean(dy) - y mean(dy y)), from the saved output and inverse deviation."""
    g = _one(gradients)
    y, inverse = b.saved(node.outputs[0]), b.saved(node.outputs[2])
    along = b.reduce("ReduceMean", b.binary("Mul", g, y), [-1], keep=True)
    centred = b.binary("Sub", g, b.reduce("ReduceMean", g, [-1], keep=True))
    free = b.binary("Sub", centred, b.binary("Mul", y, along))
    return [b.binary("Mul", free, inverse)]


def product(b: Backward, left: str, right: str, trans_left: int, trans_right: int) -> str:
    """op(left) op(right) in two dimensions, as Gemm."""
    rows, columns = b.shape(left)[trans_left], b.shape(right)[1 - trans_right]
    flags = {k: v for k, v in (("transA", trans_left), ("transB", trans_right)) if v}
    return b.emit("Gemm", [left, right], (rows, columns), **flags)


@rule("Gemm")
def _gemm(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """Y = A B + C: dA = dY B^T, dB = A^T dY, dC = dY."""
    g, (left, right, *bias) = _one(gradients), node.inputs
    dl = product(b, g, b.saved(right), 0, 1) if b.needs(left) else None
    dr = product(b, b.saved(left), g, 1, 0) if b.needs(right) else None
    return [dl, dr, *[b.unbroadcast(g, b.shape(c)) if b.needs(c) else None for c in bias]]


@rule("MatMul", "FusedMatMul")
def _matmul(b: Backward, node: Node, gradients: list[Gradient]) -> list[Gradient]:
    """Y = op(A) op(B), op a transposition and a move of the batch axis (see simplify.py)."""
    g, (left, right) = _one(gradients), node.inputs
    ranks = len(b.shape(left)), len(b.shape(right))
    if ranks == (2, 2) and node.op == "MatMul":
        return _gemm(b, node, gradients)
    a = node.attributes
    if ranks[0] != ranks[1] or not _same_batch(b, node):
        raise EdgeLadderError(
            "products that broadcast one operand over the other's batch have no rule",
            where=f"node {node.name!r}",
            remedy="expand the operand in the module, or reshape both to two dimensions",
        )
    ta, tb = a.get("transA", 0), a.get("transB", 0)
    ba, bb = a.get("transBatchA", 0), a.get("transBatchB", 0)
    found: list[Gradient] = [None, None]
    if b.needs(left):
        r = b.saved(right)
        made = _fused(b, r, g, tb, bb, 1, 0) if ta else _fused(b, g, r, 0, 0, 1 - tb, bb)
        found[0] = _moved(b, made, ba)
    if b.needs(right):
        x = b.saved(left)
        made = _fused(b, g, x, 1, 0, ta, ba) if tb else _fused(b, x, g, 1 - ta, ba, 0, 0)
        found[1] = _moved(b, made, bb)
    return found


def _same_batch(b: Backward, node: Node) -> bool:
    """Whether both operands of a product have the same leading sizes."""
    leads = []
    for name, letter in zip(node.inputs, "AB", strict=True):
        shape = b.shape(name)
        leads.append(shape[1:-1] if node.attributes.get(f"transBatch{letter}") else shape[:-2])
    return leads[0] == leads[1]


def _fused(b: Backward, left: str, right: str, ta: int, ba: int, tb: int, bb: int) -> str:
    """FusedMatMul of operands (trans, transBatch) each; the result has the batch first."""

    def matrix(value: str, trans: int, batch: int) -> tuple[Shape, int | Extent, int | Extent]:
        shape = b.shape(value)
        if len(shape) == 2:
            lead: Shape = ()
            rows, columns = shape
        elif batch:
            rows, middle, columns = shape
            lead = (middle,)
        else:
            *front, rows, columns = shape
            lead = tuple(front)
        return lead, *((columns, rows) if trans else (rows, columns))

    lead, rows, _ = matrix(left, ta, ba)
    _, _, columns = matrix(right, tb, bb)
    flags = {"transA": ta, "transBatchA": ba, "transB": tb, "transBatchB": bb}
    shape = (*lead, rows, columns)
    return b.emit(
        "FusedMatMul",
        [left, right],
        shape,
        domain=CONTRIB,
        **{key: value for key, value in flags.items() if value},
    )


def _moved(b: Backward, value: str, batch: int) -> str:
    """The batch axis back to the middle, where the operand had it there."""
    if not batch:
        return value
    first, second, third = b.shape(value)
    return b.emit("Transpose", [value], (second, first, third), perm=[1, 0, 2])
