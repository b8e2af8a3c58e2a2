"""Smaller weights on disk: fp16, or int8 with a scale per channel, widened where they are used."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_SMALL = 1024  # elements below which a tensor is left alone
_HUGE = float(np.finfo(np.float32).max) / 2
_LARGEST = {"fp16": 65504.0, "int8-weights": _HUGE, "int8": _HUGE}  # magnitude that is kept


def compress(model: onnx.ModelProto, dtype: str) -> None:
    """Store large float weights as `fp16` or `int8-weights`; `fp32` changes nothing.

    onnxruntime widens fp16 once, when it loads the model: the file shrinks, not the memory. int8
    weights of a matrix product are multiplied as they are where it has a kernel for that (1.20 and
    later), else widened in every run; those of convolutions once, because `open_segment` asks for
    it. Tables that are only gathered from stay narrow in memory: their rows are widened as read.
    Of `int8` the products are int8 already (`int8_choice`), and only tables are left to narrow.
    """
    if dtype == "fp32":
        return
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    added: list[onnx.NodeProto] = []
    for tensor in list(model.graph.initializer):
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.size < _SMALL or array.ndim < 2:
            continue
        if not np.abs(array).max() <= _LARGEST[dtype]:
            continue  # an attention mask: its -inf has no scale, and its finite minimum no half
        uses = readers.get(tensor.name, [])
        gathers = [n for n in uses if n.op_type == "Gather" and n.input[0] == tensor.name]
        if uses and len(gathers) == len(uses) and dtype != "fp16":
            _narrow_table(model, tensor, array, gathers)
            continue
        if dtype == "int8":
            continue
        wide, narrow = tensor.name, f"{tensor.name}/{dtype}"
        if dtype == "fp16":
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), narrow))
            added.append(helper.make_node("Cast", [narrow], [wide], narrow, to=TensorProto.FLOAT))
            continue
        axis = _axis(array, uses, tensor.name)
        values, scale = quantise(array, axis)
        tensor.CopyFrom(numpy_helper.from_array(values, narrow))
        scales = numpy_helper.from_array(scale, f"{narrow}/scale")
        zeros = numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{narrow}/zero")
        model.graph.initializer.extend([scales, zeros])
        added.append(
            helper.make_node(
                "DequantizeLinear", [narrow, scales.name, zeros.name], [wide], narrow, axis=axis
            )
        )
    body = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*added, *body])


def _axis(array: np.ndarray, uses: list[onnx.NodeProto], name: str) -> int:
    """The output channel: one scale each."""
    for node in uses:
        if node.op_type == "Conv":
            return 0
        if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
            return 0
    return array.ndim - 1


def quantise(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 with one float32 scale along `axis`."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    scale = np.maximum(np.abs(array).max(axis=others), 1e-12).astype(np.float32) / np.float32(127)
    shape = [1] * array.ndim
    shape[axis] = -1
    values = np.clip(np.rint(array / scale.reshape(shape)), -127, 127).astype(np.int8)
    return values, scale


def _narrow_table(
    model: onnx.ModelProto,
    tensor: onnx.TensorProto,
    array: np.ndarray,
    gathers: list[onnx.NodeProto],
) -> None:
    """Gather int8 rows and their scales, then widen what was gathered."""
    name = tensor.name
    values, scale = quantise(array, 0)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    column = scale.reshape(-1, *[1] * (array.ndim - 1))
    scales = numpy_helper.from_array(column, f"{name}/scale")
    model.graph.initializer.append(scales)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node not in gathers:
            continue
        output, index = node.output[0], node.input[1]
        node.output[0] = f"{output}/int8"
        nodes.append(helper.make_node("Gather", [scales.name, index], [f"{output}/scale"], axis=0))
        nodes.append(
            helper.make_node("Cast", [f"{output}/int8"], [f"{output}/wide"], to=TensorProto.FLOAT)
        )
        nodes.append(helper.make_node("Mul", [f"{output}/wide", f"{output}/scale"], [output]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
