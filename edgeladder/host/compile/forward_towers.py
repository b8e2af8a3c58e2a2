"""Rules for operators that only frozen towers use; no gradients are ever asked of these."""

from __future__ import annotations

import torch

from edgeladder.errors import EdgeLadderError
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
    options = [*node.args[3:], *[[1, 1], [0, 0], [1, 1], 1][len(node.args) - 3 :]]
    stride, padding, dilation, groups = options[:4]
    if isinstance(padding, str):
        raise EdgeLadderError("no ONNX rule for padding by name", where=node.name)
    inputs = [lowering.value(a) for a in node.args[:3] if a is not None]
    pads = [int(p) for p in padding] * 2  # type: ignore[union-attr, arg-type]
    return lowering.emit(
        node,
        "Conv",
        inputs,
        strides=[int(v) for v in stride],  # type: ignore[union-attr, arg-type]
        pads=pads,
        dilations=[int(v) for v in dilation],  # type: ignore[union-attr, arg-type]
        group=int(groups),  # type: ignore[arg-type]
    )


@rule("gelu")
def _gelu(lowering: Lowering, node: torch.fx.Node) -> str:
    """x (1 + erf(x / sqrt 2)) / 2, which onnxruntime fuses; the tanh form has no rule."""
    if node.kwargs.get("approximate", "none") != "none":
        raise EdgeLadderError("no ONNX rule for the tanh form of GELU", where=node.name)
    graph, x = lowering.graph, lowering.value(node.args[0])
    erf = lowering.emit(node, "Erf", [lowering.emit(node, "Div", [x, graph.constant(2**0.5)])])
    product = lowering.emit(
        node, "Mul", [x, lowering.emit(node, "Add", [erf, graph.constant(1.0)])]
    )
    return lowering.emit(node, "Mul", [product, graph.constant(0.5)])


@rule("embedding")
def _embedding(lowering: Lowering, node: torch.fx.Node) -> str:
    table, index = (lowering.value(a) for a in node.args[:2])
    return lowering.emit(node, "Gather", [table, index], axis=0)


@rule("chunk")
def _chunk(lowering: Lowering, node: torch.fx.Node) -> list[str]:
    graph, x = lowering.graph, lowering.value(node.args[0])
    axis = lowering.axis(node, int(node.args[2]) if len(node.args) > 2 else 0)  # type: ignore[arg-type]
    shapes = [tuple(lowering.dim(s) for s in v.shape) for v in node.meta["val"]]
    return graph.emit_many("Split", [x, graph.extent([s[axis] for s in shapes])], shapes, axis=axis)


@rule("dropout", "contiguous", "clone")
def _same(lowering: Lowering, node: torch.fx.Node) -> str:
    """Nothing, in inference."""
    return lowering.value(node.args[0])


@rule("flatten")
def _flatten(lowering: Lowering, node: torch.fx.Node) -> str:
    return lowering.graph.reshape(lowering.value(node.args[0]), lowering.shape(node))
