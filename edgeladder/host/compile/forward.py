"""The ladder's torch module -> `forward.onnx`: one ONNX rule per aten operator.

`torch.export` gives a graph of high-level aten operators with symbolic shapes; each is written as
the one or two standard ONNX operators that it is. Doing this ourselves rather than with torch's
exporter keeps what that loses (equal weights stay apart, scalars stay parameters, every parameter
stays an input) and gives graphs that can be read; torch remains the referee through the gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from edgeladder.core.errors import EdgeLadderError
from edgeladder.host.compile.extent import Extent, Shape, combine, symbol
from edgeladder.host.compile.graph import Graph

Rule = Callable[["Lowering", torch.fx.Node], "str | list[str]"]
RULES: dict[str, Rule] = {}


class Lowering:
    """State of one lowering: the ONNX graph so far and the name of each aten value."""

    def __init__(self, graph: Graph, symbols: dict[str, str]):
        self.graph = graph
        self.names: dict[torch.fx.Node, str | list[str]] = {}
        self.symbols = symbols  # torch's symbol -> ours

    def dim(self, size: Any) -> int | Extent:
        """An int or torch SymInt as an extent."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        parts: list[tuple[int | Extent, int]] = []
        for term, factor in expression.as_coefficients_dict().items():
            parts.append((1 if term == 1 else symbol(self.symbols[str(term)]), int(factor)))
        return combine(parts)

    def shape(self, node: torch.fx.Node) -> Shape:
        """The shape of a tensor-valued node."""
        return tuple(self.dim(size) for size in node.meta["val"].shape)

    def value(self, argument: Any) -> str:
        """The ONNX name of an argument; a number becomes a constant."""
        if isinstance(argument, torch.fx.Node):
            name = self.names[argument]
            assert isinstance(name, str)
            return name
        return self.graph.constant(argument)

    def emit(self, node: torch.fx.Node, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """One ONNX operator that yields what the aten node yields."""
        return self.graph.emit(op, inputs, self.shape(node), **attributes)

    def axis(self, node: torch.fx.Node, axis: int) -> int:
        """A non-negative axis of the node's first argument."""
        return axis % len(node.args[0].meta["val"].shape)


def lower(
    module: nn.Module,
    arguments: Sequence[Any],
    dynamic: Any,
    input_names: Sequence[str],
    output_names: Sequence[str],
    name: str,
) -> Graph:
    """Trace a module with symbolic sizes and write it as an ONNX graph.

    Args:
        module: the module; parameters and buffers become inputs named as in it.
        arguments: example inputs (nested lists of tensors).
        dynamic: `dynamic_shapes` of torch.export; each Dim's name becomes a symbol.
        input_names: names of the flattened inputs.
        output_names: names of the outputs.
        name: of the graph.

    Raises:
        EdgeLadderError: an operator without a rule, naming it and where it stands.
    """
    program = torch.export.export(module, tuple(arguments), dynamic_shapes=dynamic, strict=False)
    signature = program.graph_signature
    graph = Graph(name)
    lowering = Lowering(graph, _symbols(program, dynamic))
    kept = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    wanted = iter(input_names)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            if node.name in signature.inputs_to_lifted_tensor_constants:
                target = signature.inputs_to_lifted_tensor_constants[node.name]
                tensor = program.constants[target].numpy()
                lowering.names[node] = graph.constant(tensor, tensor.dtype.name)
                continue
            label = kept.get(node.name) or next(wanted)
            value = node.meta["val"]
            dtype = str(value.dtype).removeprefix("torch.")
            label = label.removeprefix("ladder.")
            lowering.names[node] = graph.add_input(label, lowering.shape(node), dtype)
        elif node.op == "call_function":
            _lower_node(lowering, node)
        elif node.op == "output":
            results = [lowering.value(r) for r in node.args[0] if isinstance(r, torch.fx.Node)]
            for result, label in zip(results, output_names, strict=True):
                graph.declare(label, graph.shapes[result], graph.types[result])
                producer = graph.producers()[result]
                producer.outputs = [label if o == result else o for o in producer.outputs]
                graph.rename(result, label)
                graph.outputs.append(label)
    graph.prune()
    return graph


def _symbols(program: torch.export.ExportedProgram, dynamic: Any) -> dict[str, str]:
    """torch's symbol (s24) -> the name of its Dim.

    Inputs of one Dim may keep symbols of their own, where the trace never compared them.
    """
    given = iter(_axes(dynamic))
    users = set(program.graph_signature.user_inputs)
    found: dict[str, str] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in users:
            for axis, dim in next(given).items():
                found[str(node.meta["val"].shape[axis].node.expr)] = dim.__name__
    return found


def _axes(dynamic: Any) -> list[dict[int, Any]]:
    """`dynamic_shapes` of torch.export, nested as the arguments are, as one {axis: Dim} each."""
    if isinstance(dynamic, (list, tuple)):
        return [axes for part in dynamic for axes in _axes(part)]
    return [dynamic or {}]


def _lower_node(lowering: Lowering, node: torch.fx.Node) -> None:
    value = node.meta.get("val")
    if not isinstance(value, (torch.Tensor, list, tuple)):
        return  # arithmetic on sizes: shapes come from the results' metadata
    op = node.target.__name__ if callable(node.target) else str(node.target)
    op = op.split(".")[0]
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    lowering.graph.scope = _scope(path.removeprefix("L['self'].").removeprefix("ladder."))
    rule = RULES.get(op)
    if rule is None:
        raise EdgeLadderError(
            f"no ONNX rule for operator {op!r}",
            where=f"node {node.name!r} in {path or 'the ladder'}",
            remedy="write the module with other operators or add a rule to host/compile/forward.py",
        )
    lowering.names[node] = rule(lowering, node)


def _scope(path: str) -> str:
    """`rungs.3` of `rungs.3.attend`, so that recomputation can find whole rungs."""
    parts = path.split(".")
    for index, part in enumerate(parts[:-1]):
        if part.endswith("rungs"):
            return ".".join(parts[index : index + 2])
    return parts[0] if parts[0] else ""


def rule(*ops: str) -> Callable[[Rule], Rule]:
    """Register the rule of one or more aten operators."""

    def register(function: Rule) -> Rule:
        for op in ops:
            RULES[op] = function
        return function

    return register


_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "gt": "Greater"}
_UNARY = {"sigmoid": "Sigmoid", "relu": "Relu", "sqrt": "Sqrt", "neg": "Neg", "exp": "Exp"}


@rule(*_BINARY)
def _binary(lowering: Lowering, node: torch.fx.Node) -> str:
    op = str(node.target.__name__).split(".")[0]
    dtype = "bool" if op == "gt" else "float32"
    inputs = [lowering.value(a) for a in node.args[:2]]
    return lowering.emit(node, _BINARY[op], inputs, dtype=dtype)


@rule("rsub")
def _rsub(lowering: Lowering, node: torch.fx.Node) -> str:
    return lowering.emit(node, "Sub", [lowering.value(node.args[1]), lowering.value(node.args[0])])


@rule(*_UNARY)
def _unary(lowering: Lowering, node: torch.fx.Node) -> str:
    op = str(node.target.__name__).split(".")[0]
    return lowering.emit(node, _UNARY[op], [lowering.value(node.args[0])])


@rule("silu")
def _silu(lowering: Lowering, node: torch.fx.Node) -> str:
    x = lowering.value(node.args[0])
    return lowering.emit(node, "Mul", [x, lowering.emit(node, "Sigmoid", [x])], hint="silu")


@rule("to", "_to_copy")
def _cast(lowering: Lowering, node: torch.fx.Node) -> str:
    """To float32; nothing where it is that: open_clip's layer norms cast back what no one cast."""
    value = lowering.value(node.args[0])
    if lowering.graph.types[value] == "float32":
        return value
    return lowering.emit(node, "Cast", [value], to=1)


@rule("detach")
def _detach(lowering: Lowering, node: torch.fx.Node) -> str:
    return lowering.emit(node, "Identity", [lowering.value(node.args[0])], hint="stop_gradient")


@rule("reshape", "view", "unsqueeze", "squeeze")
def _reshape(lowering: Lowering, node: torch.fx.Node) -> str:
    return lowering.graph.reshape(lowering.value(node.args[0]), lowering.shape(node))


@rule("select")
def _select(lowering: Lowering, node: torch.fx.Node) -> str:
    x = lowering.value(node.args[0])
    axis, index = lowering.axis(node, int(node.args[1])), int(node.args[2])
    shape = list(lowering.graph.shapes[x])
    shape[axis] = 1
    stops = [lowering.graph.constant([v], "int64", "index") for v in (index, index + 1, axis)]
    piece = lowering.graph.emit("Slice", [x, *stops], tuple(shape))
    return lowering.graph.reshape(piece, lowering.shape(node))


@rule("index_select")
def _gather(lowering: Lowering, node: torch.fx.Node) -> str:
    x, index = lowering.value(node.args[0]), lowering.value(node.args[2])
    return lowering.emit(node, "Gather", [x, index], axis=lowering.axis(node, int(node.args[1])))


@rule("slice")
def _slice(lowering: Lowering, node: torch.fx.Node) -> str:
    x = lowering.value(node.args[0])
    axis = lowering.axis(node, int(node.args[1]) if len(node.args) > 1 else 0)
    start = int(node.args[2] or 0) if len(node.args) > 2 else 0
    stop = int(node.args[3]) if len(node.args) > 3 else 2**62
    if lowering.shape(node) == lowering.graph.shapes[x]:
        return x
    step = int(node.args[4]) if len(node.args) > 4 else 1
    numbers = (start, min(stop, 2**62), axis, *([step] if step != 1 else []))
    bounds = [lowering.graph.constant([v], "int64", "index") for v in numbers]
    return lowering.emit(node, "Slice", [x, *bounds])


@rule("matmul", "mm", "bmm")
def _matmul(lowering: Lowering, node: torch.fx.Node) -> str:
    return lowering.emit(node, "MatMul", [lowering.value(a) for a in node.args])


@rule("addmm")
def _addmm(lowering: Lowering, node: torch.fx.Node) -> str:
    bias, left, right = (lowering.value(a) for a in node.args)
    return lowering.emit(node, "Gemm", [left, right, bias])


@rule("cat")
def _cat(lowering: Lowering, node: torch.fx.Node) -> str:
    parts = [lowering.value(a) for a in node.args[0]]
    rank = len(lowering.shape(node))
    axis = int(node.args[1]) % rank if len(node.args) > 1 else 0
    return lowering.emit(node, "Concat", parts, axis=axis)


@rule("stack")
def _stack(lowering: Lowering, node: torch.fx.Node) -> str:
    parts = [lowering.value(a) for a in node.args[0]]
    graph = lowering.graph
    axis = int(node.args[1]) % len(lowering.shape(node)) if len(node.args) > 1 else 0
    lifted = [
        graph.reshape(part, (*shape[:axis], 1, *shape[axis:]))
        for part, shape in ((part, graph.shapes[part]) for part in parts)
    ]
    return lowering.emit(node, "Concat", lifted, axis=axis)


@rule("transpose")
def _transpose(lowering: Lowering, node: torch.fx.Node) -> str:
    order = list(range(len(lowering.shape(node))))
    first, second = (lowering.axis(node, int(a)) for a in node.args[1:3])
    order[first], order[second] = order[second], order[first]
    return lowering.emit(node, "Transpose", [lowering.value(node.args[0])], perm=order)


@rule("permute")
def _permute(lowering: Lowering, node: torch.fx.Node) -> str:
    order = [lowering.axis(node, int(a)) for a in node.args[1]]
    return lowering.emit(node, "Transpose", [lowering.value(node.args[0])], perm=order)


@rule("split_with_sizes", "split", "unbind")
def _split(lowering: Lowering, node: torch.fx.Node) -> list[str]:
    graph, x = lowering.graph, lowering.value(node.args[0])
    unbind = "unbind" in str(node.target)
    place = 1 if unbind else 2
    axis = lowering.axis(node, int(node.args[place]) if len(node.args) > place else 0)
    shapes: list[Shape] = [tuple(lowering.dim(s) for s in v.shape) for v in node.meta["val"]]
    if unbind:
        lifted = [(*s[:axis], 1, *s[axis:]) for s in shapes]
        sizes = graph.constant([1] * len(shapes), "int64", "sizes")
        pieces = graph.emit_many("Split", [x, sizes], lifted, axis=axis, hint="unbind")
        return [graph.reshape(p, s) for p, s in zip(pieces, shapes, strict=True)]
    return graph.emit_many("Split", [x, graph.extent([s[axis] for s in shapes])], shapes, axis=axis)


@rule("getitem")
def _getitem(lowering: Lowering, node: torch.fx.Node) -> str:
    return lowering.names[node.args[0]][int(node.args[1])]


@rule("expand")
def _expand(lowering: Lowering, node: torch.fx.Node) -> str:
    shape = lowering.shape(node)
    return lowering.emit(
        node, "Expand", [lowering.value(node.args[0]), lowering.graph.extent(shape)]
    )


@rule("pad", "constant_pad_nd")
def _pad(lowering: Lowering, node: torch.fx.Node) -> str:
    """Zeros before the last axis, as a Concat, whose gradient is a Split; else a plain Pad."""
    x, shape = lowering.value(node.args[0]), lowering.shape(node)
    amounts = [int(v) for v in node.args[1]]
    if len(amounts) != 2 or amounts[1]:  # towers only: (before, after) from the last axis on
        pads = [[0, 0]] * (len(shape) - len(amounts) // 2)
        pads += [amounts[i : i + 2] for i in range(len(amounts) - 2, -1, -2)]
        ends = lowering.graph.constant([p[0] for p in pads] + [p[1] for p in pads], "int64", "pads")
        return lowering.emit(node, "Pad", [x, ends])
    before = amounts[0]
    zeros = lowering.graph.constant(np.zeros((*shape[:-1], before), np.float32))
    return lowering.emit(node, "Concat", [zeros, x], axis=len(shape) - 1)


@rule("layer_norm")
def _layer_norm(lowering: Lowering, node: torch.fx.Node) -> str:
    graph, x = lowering.graph, lowering.value(node.args[0])
    shape = lowering.shape(node)
    epsilon = float(node.args[4]) if len(node.args) > 4 else 1e-5
    ones = graph.constant(np.ones(shape[-1], np.float32), hint="ones")
    zeros = graph.constant(np.zeros(shape[-1], np.float32), hint="zeros")
    affine = [lowering.value(a) for a in node.args[2:4] if a is not None]
    ones, zeros = [*affine, *[ones, zeros][len(affine) :]]
    reduced = (*shape[:-1], 1)
    # onnxruntime-training's gradient needs the bias, and three outputs: mean, inverse deviation
    return graph.emit_many(
        "LayerNormalization", [x, ones, zeros], [shape, reduced, reduced], axis=-1, epsilon=epsilon
    )[0]


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def _softmax(lowering: Lowering, node: torch.fx.Node) -> str:
    op = "LogSoftmax" if "log_softmax" in str(node.target) else "Softmax"
    return lowering.emit(node, op, [lowering.value(node.args[0])], axis=-1)


@rule("mean", "sum", "amax")
def _reduce(lowering: Lowering, node: torch.fx.Node) -> str:
    graph, x = lowering.graph, lowering.value(node.args[0])
    op = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax"}[
        str(node.target.__name__).split(".")[0]
    ]
    rank = len(graph.shapes[x])
    axes = node.args[1] if len(node.args) > 1 and node.args[1] is not None else list(range(rank))
    axes = [int(a) % rank for a in (axes if isinstance(axes, (list, tuple)) else [axes])]
    keep = int(len(graph.shapes[x]) == len(lowering.shape(node)) and len(axes) > 0)
    named = graph.constant(axes, "int64", "axes")
    return graph.emit(op, [x, named], lowering.shape(node), keepdims=keep)
