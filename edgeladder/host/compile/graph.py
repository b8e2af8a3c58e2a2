"""The compiler's graph: ONNX operators in static single assignment, with symbolic shapes.

Thin on purpose: a `Node` is an ONNX node, a `Graph` a list of them in execution order. What it
adds to ONNX is a shape for every value and `extents`: int64 shape tensors (for Expand, Split and
the like) kept symbolic until `to_onnx` writes the few operators that compute them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeladder.host.compile.extent import Extent, Shape, combine, parse, symbol

OPSET = 18
IR_VERSION = 8
CONTRIB = "com.microsoft"
_TYPES = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "bool": TensorProto.BOOL,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
}
_NAMES = {code: name for name, code in _TYPES.items()}


@dataclass
class Node:
    """One operator."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    domain: str = ""
    scope: str = ""  # e.g. rungs.3: what recomputation works by
    name: str = ""


class Graph:
    """Nodes in execution order, with the shape and type of every value."""

    def __init__(self, name: str):
        self.name = name
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.extents: dict[str, Shape] = {}  # int64 shape tensors, symbolic
        self.shapes: dict[str, Shape] = {}
        self.types: dict[str, str] = {}
        self.scope = ""
        self._fresh: Counter[str] = Counter()
        self._known: dict[tuple[Any, ...], str] = {}

    # -- building ---------------------------------------------------------------------------

    def fresh(self, hint: str) -> str:
        """A new value name that starts with `hint`."""
        while True:
            self._fresh[hint] += 1
            name = hint if self._fresh[hint] == 1 else f"{hint}_{self._fresh[hint]}"
            if name not in self.shapes and name not in self.extents:
                return name

    def declare(self, name: str, shape: Shape, dtype: str = "float32") -> str:
        """Give a value its shape and type."""
        self.shapes[name], self.types[name] = tuple(shape), dtype
        return name

    def add_input(self, name: str, shape: Shape, dtype: str = "float32") -> str:
        """A graph input."""
        self.inputs.append(name)
        return self.declare(name, shape, dtype)

    def constant(self, value: Any, dtype: str = "float32", hint: str = "constant") -> str:
        """A constant, shared with any equal one."""
        array = np.asarray(value, dtype=dtype)
        key = (dtype, array.shape, array.tobytes())
        if key not in self._known:
            name = self.declare(self.fresh(hint), array.shape, dtype)
            self.constants[name] = array
            self._known[key] = name
        return self._known[key]

    def extent(self, dims: Sequence[int | Extent]) -> str:
        """An int64 vector of extents: a constant where all are numbers."""
        dims = tuple(dims)
        if all(isinstance(dim, int) for dim in dims):
            return self.constant(dims, "int64", "shape")
        key = ("extent", dims)
        if key not in self._known:
            name = self.fresh("extent")
            self.extents[name] = dims
            self.declare(name, (len(dims),), "int64")
            self._known[key] = name
        return self._known[key]

    def emit(
        self,
        op: str,
        inputs: Sequence[str],
        shape: Shape,
        *,
        hint: str | None = None,
        dtype: str = "float32",
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Append a node with one output and return its name."""
        return self.emit_many(
            op, inputs, [shape], hint=hint, dtype=dtype, domain=domain, **attributes
        )[0]

    def emit_many(
        self,
        op: str,
        inputs: Sequence[str],
        shapes: Sequence[Shape],
        *,
        hint: str | None = None,
        dtype: str = "float32",
        domain: str = "",
        **attributes: Any,
    ) -> list[str]:
        """Append a node and return its outputs' names."""
        base = f"{self.scope}/{hint or op.lower()}" if self.scope else hint or op.lower()
        outputs = [self.declare(self.fresh(base), shape, dtype) for shape in shapes]
        self.nodes.append(Node(op, list(inputs), outputs, attributes, domain, self.scope, base))
        return outputs

    def reshape(self, value: str, shape: Shape) -> str:
        """Reshape, with at most one symbolic extent written as -1."""
        if self.shapes[value] == tuple(shape):
            return value
        symbolic = [dim for dim in shape if isinstance(dim, Extent)]
        if len(symbolic) <= 1:
            target = [-1 if isinstance(dim, Extent) else dim for dim in shape]
            to = self.constant(target, "int64", "shape")
        else:
            to = self.extent(shape)
        return self.emit("Reshape", [value, to], shape, dtype=self.types[value])

    # -- asking -----------------------------------------------------------------------------

    def producers(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {output: node for node in self.nodes for output in node.outputs}

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each value, once per reading input."""
        readers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node)
        return readers

    def rename(self, old: str, new: str) -> None:
        """Let every reader of `old`, and the graph's outputs, take `new`."""
        for node in self.nodes:
            node.inputs = [new if name == old else name for name in node.inputs]
        self.outputs = [new if name == old else name for name in self.outputs]

    def prune(self) -> None:
        """Drop nodes, constants and extents that no output needs."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if any(output in needed for output in node.outputs):
                needed.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {n: v for n, v in self.constants.items() if n in needed}
        self.extents = {n: v for n, v in self.extents.items() if n in needed}
        self._known = {k: n for k, n in self._known.items() if n in needed}

    def copy(self, name: str) -> Graph:
        """A copy that can be changed without touching this one."""
        other = Graph(name)
        other.inputs, other.outputs = list(self.inputs), list(self.outputs)
        other.nodes = [
            Node(
                n.op, list(n.inputs), list(n.outputs), dict(n.attributes), n.domain, n.scope, n.name
            )
            for n in self.nodes
        ]
        other.constants, other.extents = dict(self.constants), dict(self.extents)
        other.shapes, other.types = dict(self.shapes), dict(self.types)
        other._known = dict(self._known)
        other._fresh = Counter(self._fresh)
        return other

    # -- ONNX -------------------------------------------------------------------------------

    def _symbol_source(self, wanted: str) -> tuple[str, int]:
        for name in self.inputs:
            for axis, dim in enumerate(self.shapes[name]):
                if dim == symbol(wanted):
                    return name, axis
        raise ValueError(f"no input of {self.name} has extent {wanted}")

    def _extent_nodes(self) -> list[onnx.NodeProto]:
        """Operators that compute the symbolic shape tensors, each extent once."""
        nodes: list[onnx.NodeProto] = []
        made: set[str] = set()

        def once(op: str, inputs: list[str], output: str, **attributes: int) -> str:
            if output not in made:
                made.add(output)
                nodes.append(helper.make_node(op, inputs, [output], output, **attributes))
            return output

        def vector(value: int) -> str:
            return self.constant([value], "int64", "size")

        def scalar(dim: int | Extent) -> str:
            if isinstance(dim, int):
                return vector(dim)
            total = ""
            for name, coefficient in dim.terms:
                source, axis = self._symbol_source(name)
                term = once("Shape", [source], f"size/{name}", start=axis, end=axis + 1)
                if coefficient != 1:
                    term = once("Mul", [term, vector(coefficient)], f"size/{coefficient}*{name}")
                short = term.removeprefix("size/")
                total = once("Add", [total, term], f"{total} + {short}") if total else term
            if dim.constant:
                total = once("Add", [total, vector(dim.constant)], f"{total} + {dim.constant}")
            return total

        for name, dims in self.extents.items():
            parts = [scalar(dim) for dim in dims]
            nodes.append(helper.make_node("Concat", parts, [name], name, axis=0))
        return nodes

    def to_onnx(self) -> onnx.ModelProto:
        """An ONNX model: opset 18, IR 8, shapes of every value written as dimension names."""
        extents = self._extent_nodes()
        used: set[str] = {name for node in self.nodes for name in node.inputs}
        used |= {name for node in extents for name in node.input} | set(self.outputs)
        nodes = [
            helper.make_node(
                n.op, n.inputs, n.outputs, n.name or None, domain=n.domain or None, **n.attributes
            )
            for n in self.nodes
        ]
        seen: Counter[str] = Counter()
        for node in nodes:  # names unique, as Netron and onnxruntime like them
            seen[node.name] += 1
            if seen[node.name] > 1:
                node.name = f"{node.name}_{seen[node.name]}"
        made = [output for node in self.nodes for output in node.outputs if output]
        graph = helper.make_graph(
            extents + nodes,
            self.name,
            [self._value_info(name) for name in self.inputs],
            [self._value_info(name) for name in self.outputs],
            [numpy_helper.from_array(v, n) for n, v in self.constants.items() if n in used],
            value_info=[self._value_info(n) for n in made if n not in self.outputs],
        )
        domains = [helper.make_opsetid("", OPSET)]
        if any(n.domain == CONTRIB for n in self.nodes):
            domains.append(helper.make_opsetid(CONTRIB, 1))
        return helper.make_model(
            graph, opset_imports=domains, ir_version=IR_VERSION, producer_name="edgeladder"
        )

    def save(self, path: Path) -> None:
        """Write the model to a file."""
        onnx.save(self.to_onnx(), str(path))

    def _value_info(self, name: str) -> onnx.ValueInfoProto:
        dims = [dim if isinstance(dim, int) else str(dim) for dim in self.shapes[name]]
        return helper.make_tensor_value_info(name, _TYPES[self.types[name]], dims)

    @classmethod
    def from_onnx(cls, model: onnx.ModelProto) -> Graph:
        """Read a model that `to_onnx` wrote, shapes and symbolic extents included."""
        graph = cls(model.graph.name)
        for info in [*model.graph.input, *model.graph.output, *model.graph.value_info]:
            kind = info.type.tensor_type
            shape = tuple(
                parse(d.dim_param) if d.dim_param else d.dim_value for d in kind.shape.dim
            )
            graph.declare(info.name, shape, _NAMES[kind.elem_type])
        graph.inputs = [info.name for info in model.graph.input]
        graph.outputs = [info.name for info in model.graph.output]
        for tensor in model.graph.initializer:
            array = numpy_helper.to_array(tensor)
            graph.constants[tensor.name] = array
            graph.declare(tensor.name, array.shape, array.dtype.name)
            graph._known[(array.dtype.name, array.shape, array.tobytes())] = tensor.name
        for proto in model.graph.node:
            dims = graph._read_extent(proto)
            if dims is not None:
                name = proto.output[0]
                graph.extents[name] = dims
                graph.declare(name, (len(dims),), "int64")
                graph._known.setdefault(("extent", dims), name)
                continue
            attributes = {a.name: _attribute(a) for a in proto.attribute}
            scope = proto.name.rsplit("/", 1)[0] if "/" in proto.name else ""
            graph.nodes.append(
                Node(
                    proto.op_type,
                    list(proto.input),
                    list(proto.output),
                    attributes,
                    proto.domain,
                    scope,
                    proto.name,
                )
            )
        graph.prune()  # the steps that compute extents are extents themselves until here
        return graph

    def _read_extent(self, proto: onnx.NodeProto) -> Shape | None:
        """Dimensions of a shape tensor that the node computes, or None if it is no such node."""
        if proto.op_type == "Shape":
            bounds = {a.name: a.i for a in proto.attribute}
            return self.shapes[proto.input[0]][bounds["start"] : bounds["end"]]
        if proto.op_type not in ("Mul", "Add", "Concat"):
            return None
        parts = [self._dims(name) for name in proto.input]
        if any(part is None for part in parts):
            return None
        known = [part for part in parts if part is not None]
        if proto.op_type == "Concat":
            return tuple(dim for part in known for dim in part)
        first, second = known[0][0], known[1][0]
        if proto.op_type == "Add":
            return (combine([(first, 1), (second, 1)]),)
        factor = second if isinstance(second, int) else first
        base = first if factor is second else second
        assert isinstance(factor, int)
        return (combine([(base, factor)]),)

    def _dims(self, name: str) -> Shape | None:
        if name in self.extents:
            return self.extents[name]
        value = self.constants.get(name)
        if value is not None and value.dtype == np.int64 and value.ndim == 1:
            return tuple(int(v) for v in value)
        return None

    def bytes_of(self, name: str, values: dict[str, int]) -> int:
        """Size of a value, with numbers for the symbols."""
        from edgeladder.host.compile.extent import evaluate

        size = 1
        for dim in evaluate(self.shapes[name], values):
            size *= dim
        return size * np.dtype(self.types[name]).itemsize


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value
