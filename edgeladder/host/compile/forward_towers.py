"""Rules for operators that only frozen towers use; no gradients are ever asked of these."""

from __future__ import annotations

import math
from typing import Any

import torch

from edgeladder.core.errors import EdgeLadderError
from edgeladder.host.compile.forward import Lowering, rule


@rule("linear")
def _linear(lowering: Lowering, node: torch.fx.Node) -> str:
    """x W^T + b: the transposition of W is folded into the file (`fold_transposed`)."""
    graph = lowering.graph
    x, weight = lowering.value(node.args[0]), lowering.value(node.args[1])
    rows, columns = graph.shapes[weight]
    turned = graph.emit("Transpose", [weight], (columns, rows), perm=[1, 0])
    product = lowering.emit(node, "MatMul", [x, turned])
    if len(node.args) < 3 or node.args[2] is None:
        return product
    return lowering.emit(node, "Add", [product, lowering.value(node.args[2])])


@rule("conv2d")
def _conv2d(lowering: Lowering, node: torch.fx.Node) -> str:
    given = node.args[3:]  # nothing where torch left the defaults away
    options = [*given, *[[1, 1], [0, 0], [1, 1], 1][len(given) :]]
    stride, padding, dilation, groups = options[:4]
    if isinstance(padding, str):
        raise EdgeLadderError("no ONNX rule for padding by name", where=node.name)
    inputs = [lowering.value(a) for a in node.args[:3] if a is not None]
    pads = [int(p) for p in padding] * 2
    return lowering.emit(
        node,
        "Conv",
        inputs,
        strides=[int(v) for v in stride],
        pads=pads,
        dilations=[int(v) for v in dilation],
        group=int(groups),
    )


@rule("gelu")
def _gelu(lowering: Lowering, node: torch.fx.Node) -> str:
    """x (1 + erf(x / sqrt 2)) / 2, which onnxruntime fuses, or the tanh form."""
    graph, x = lowering.graph, lowering.value(node.args[0])
    if node.kwargs.get("approximate", "none") == "tanh":
        # x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2, arXiv:1606.08415
        square = lowering.emit(node, "Mul", [x, x])
        factor = lowering.emit(node, "Mul", [square, graph.constant(0.044715)])
        factor = lowering.emit(node, "Add", [factor, graph.constant(1.0)])
        inner = lowering.emit(node, "Mul", [x, factor])
        inner = lowering.emit(node, "Mul", [inner, graph.constant((2 / math.pi) ** 0.5)])
        curve = lowering.emit(node, "Tanh", [inner])
    else:
        curve = lowering.emit(
            node, "Erf", [lowering.emit(node, "Div", [x, graph.constant(2**0.5)])]
        )
    shifted = lowering.emit(node, "Add", [curve, graph.constant(1.0)])
    product = lowering.emit(node, "Mul", [x, shifted])
    return lowering.emit(node, "Mul", [product, graph.constant(0.5)])


@rule("batch_norm")
def _batch_norm(lowering: Lowering, node: torch.fx.Node) -> str:
    """With the running statistics: frozen towers are never in training mode."""
    inputs = [lowering.value(a) for a in node.args[:5]]
    return lowering.emit(node, "BatchNormalization", inputs, epsilon=float(node.args[7]))


@rule("hardtanh", "relu6")
def _clip(lowering: Lowering, node: torch.fx.Node) -> str:
    low, high = node.args[1:3] if len(node.args) > 2 else (0.0, 6.0)
    if len(node.args) <= 2 and str(node.target).find("hardtanh") >= 0:
        low, high = -1.0, 1.0
    limits = [lowering.graph.constant(v) for v in (low, high)]
    return lowering.emit(node, "Clip", [lowering.value(node.args[0]), *limits])


@rule("hardswish")
def _hardswish(lowering: Lowering, node: torch.fx.Node) -> str:
    return lowering.emit(node, "HardSwish", [lowering.value(node.args[0])])


@rule("adaptive_avg_pool2d")
def _global_pool(lowering: Lowering, node: torch.fx.Node) -> str:
    if node.args[1] not in (1, [1, 1], (1, 1)):
        raise EdgeLadderError("no ONNX rule for pooling to more than one cell", where=node.name)
    return lowering.emit(node, "GlobalAveragePool", [lowering.value(node.args[0])])


@rule("embedding")
def _embedding(lowering: Lowering, node: torch.fx.Node) -> str:
    table, index = (lowering.value(a) for a in node.args[:2])
    return lowering.emit(node, "Gather", [table, index], axis=0)


@rule("chunk")
def _chunk(lowering: Lowering, node: torch.fx.Node) -> list[str]:
    graph, x = lowering.graph, lowering.value(node.args[0])
    axis = lowering.axis(node, int(node.args[2]) if len(node.args) > 2 else 0)
    shapes = [tuple(lowering.dim(s) for s in v.shape) for v in node.meta["val"]]
    return graph.emit_many("Split", [x, graph.extent([s[axis] for s in shapes])], shapes, axis=axis)


@rule("dropout", "contiguous", "clone", "type_as")
def _same(lowering: Lowering, node: torch.fx.Node) -> str:
    """Nothing, in inference."""
    return lowering.value(node.args[0])


@rule("flatten")
def _flatten(lowering: Lowering, node: torch.fx.Node) -> str:
    return lowering.graph.reshape(lowering.value(node.args[0]), lowering.shape(node))


@rule("avg_pool2d")
def _average_pool(lowering: Lowering, node: torch.fx.Node) -> str:
    """Windows inside the map alone; torch's default stride is the window."""
    given = [*node.args[1:4], None, None, None]
    window = _pair(given[0])
    stride, padding = _pair(given[1] or window), _pair(given[2] or 0)
    if any(padding) or len(node.args) > 4:
        raise EdgeLadderError("no ONNX rule for pooling beyond the map's edge", where=node.name)
    x = lowering.value(node.args[0])
    return lowering.emit(node, "AveragePool", [x], kernel_shape=window, strides=stride)


def _pair(value: Any) -> list[int]:
    """torch's 2, [2] or [2, 2] as two numbers."""
    numbers = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(number) for number in (numbers * 2)[:2]]
