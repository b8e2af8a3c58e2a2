"""What a segment's activations take while one sample passes through it."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from edgeladder.host.compile.int8_products import INSIDE, ROWS
from edgeladder.host.model.frozen_tower import Piece

_SUM = "/sum"
_BYTES = {TensorProto.INT64: 8, TensorProto.UINT8: 1, TensorProto.INT8: 1}  # 4 of all others


def peak_bytes(model: onnx.ModelProto, values: dict[str, torch.Tensor], piece: Piece) -> int:
    """Peak bytes of intermediate tensors for one sample, by shape inference and liveness."""
    sized = _of_the_standard(model)
    for info in [*sized.graph.input, *sized.graph.output]:
        info.type.tensor_type.shape.dim[0].ClearField("dim_param")
        info.type.tensor_type.shape.dim[0].dim_value = 1
    try:
        sized = onnx.shape_inference.infer_shapes(sized, data_prop=True)
    except Exception:  # only an estimate is lost
        return int(4 * sum(values[name][0].numel() for name in piece.outputs))
    sizes = {}
    for info in [*sized.graph.value_info, *sized.graph.output]:
        kind = info.type.tensor_type
        width = _BYTES.get(kind.elem_type, 4)
        sizes[info.name] = width * int(np.prod([max(1, d.dim_value) for d in kind.shape.dim]))
    same = _same_memory(sized)
    last = {same.get(n, n): i for i, node in enumerate(sized.graph.node) for n in node.input}
    live, peak = 0, 0
    for place, node in enumerate(sized.graph.node):
        live += sum(sizes.get(name, 0) for name in node.output if name not in same)
        peak = max(peak, live)
        done = {same.get(name, name) for name in node.input}
        live -= sum(sizes.get(name, 0) for name in done if last.get(name) == place)
    return peak


def _same_memory(model: onnx.ModelProto) -> dict[str, str]:
    """Tensors around int8 products that are others in another shape -> the first of those."""
    same: dict[str, str] = {}
    for node in model.graph.node:
        given = node.input[0] if node.input else ""
        reshapes = node.op_type == "Reshape" and (INSIDE in node.output[0] or given.endswith(ROWS))
        if reshapes or (node.op_type == "Cast" and given.endswith(_SUM)):
            same[node.output[0]] = same.get(given, given)
    return same


def _of_the_standard(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which shape inference knows every operator."""
    sized = onnx.ModelProto()
    sized.CopyFrom(model)
    nodes = []
    for node in sized.graph.node:
        if node.op_type == "MultiHeadAttention":
            turned = [f"{node.output[0]}/{number}" for number in range(len(node.input))]
            for name, copy in zip(node.input, turned, strict=True):
                nodes.append(helper.make_node("Identity", [name], [copy]))  # heads first
            nodes.append(helper.make_node("Sum", turned, list(node.output)))
            continue
        if node.op_type != "MatMulIntegerToFloat":
            nodes.append(node)
            continue
        levels, weight, _, _, zero = node.input
        # a float is as long as the sum that it is made of, in place
        inner, output = f"{node.output[0]}{_SUM}", node.output[0]
        nodes.append(helper.make_node("MatMulInteger", [levels, weight, zero], [inner]))
        nodes.append(helper.make_node("Cast", [inner], [output], to=TensorProto.FLOAT))
    del sized.graph.node[:]
    sized.graph.node.extend(nodes)
    return sized
