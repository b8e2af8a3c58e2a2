"""Joining ONNX files into one: segments, ladder and constants become a single graph.

Weights are streamed from the segments' external data into the one file, so memory stays small
whatever the model's size.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgeladder.core import disk
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import replacing
from edgeladder.core.protobuf import (
    Fields,
    Tensor,
    Value,
    encode,
    message,
    parse,
    read_tensor,
    rename_node,
    text,
    varint,
)

_PROTOBUF_LIMIT_BYTES = 2**31 - 1

Attribute = int | float | str | list[int]
"""Of a node."""


@dataclass
class Graph:
    """A graph being put together; names are unique over all that is joined into it."""

    nodes: list[bytes] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    uses: dict[str, str] = field(default_factory=dict)  # constant -> how it is first used
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)
    opsets: dict[str, int] = field(default_factory=dict)
    functions: dict[tuple[str, str], bytes] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)  # axes of tensors that a file describes
    ir_version: int = 8
    _counter: int = 0

    def constant(self, name: str, array: np.ndarray) -> str:
        """Add a constant; returns its name."""
        self.tensors[name] = Tensor.of(name, array)
        return name

    def add(
        self,
        operator: str,
        inputs: Sequence[str],
        output: str | None = None,
        attributes: Mapping[str, Attribute] | None = None,
        *,
        outputs: int = 1,
    ) -> str:
        """Append one node of the default domain; returns its first output's name.

        Of `outputs` that it must have the others are used by nothing.
        """
        self._counter += 1
        output = output or f"join/{operator}_{self._counter}"
        fields: list[tuple[int, Value | str]] = [(1, name) for name in inputs]
        fields.append((2, output))
        fields += [(2, f"{output}/{further}") for further in range(1, outputs)]
        fields += [(3, f"join/{operator}_{self._counter}"), (4, operator)]
        fields += [(5, _attribute(name, value)) for name, value in (attributes or {}).items()]
        self.nodes.append(message(fields))
        for name in inputs:
            self.uses.setdefault(name, operator)
        return output

    def join(self, path: Path, prefix: str, names: Mapping[str, str]) -> None:
        """Append a model file's nodes and constants.

        Args:
            path: the .onnx file; its external data is read when the result is written.
            prefix: put before every name of its own, so that files do not collide.
            names: its tensor names that are joined to names of this graph; an initializer or
                input named here is taken from this graph.

        Raises:
            IntegrityError: not an ONNX file.
            ConfigError: its operator set versions differ from those already here.
        """
        model = parse(path.read_bytes())
        for number, value in model:
            if number == 1 and isinstance(value, int):
                self.ir_version = max(self.ir_version, value)
            elif number == 8 and isinstance(value, bytes):
                self._import(dict(parse(value)), path)
            elif number == 25 and isinstance(value, bytes):
                fields = dict(parse(value))
                self.functions[text(fields.get(10, b"")), text(fields.get(1, b""))] = value

        def renamed(name: str) -> str:
            return name and names.get(name, prefix + name)

        graphs = [value for number, value in model if number == 7 and isinstance(value, bytes)]
        if len(graphs) != 1:
            raise IntegrityError("not an ONNX model", where=str(path))
        for number, value in parse(graphs[0]):
            if isinstance(value, bytes):
                self._take(number, value, path.parent, names, renamed)

    def _take(
        self,
        number: int,
        value: bytes,
        folder: Path,
        names: Mapping[str, str],
        renamed: Callable[[str], str],
    ) -> None:
        """A field of a joined GraphProto: a node, a constant, or what a tensor is."""
        if number == 1:
            self._take_node(value, renamed)
        elif number == 5:
            tensor = read_tensor(value, folder)
            if tensor.name not in names:
                self.tensors[renamed(tensor.name)] = replace(tensor, name=renamed(tensor.name))
        elif number in (11, 12, 13):
            name, rank = _described(value)
            if rank is not None:
                self.ranks[renamed(name)] = rank

    def _take_node(self, node: bytes, renamed: Callable[[str], str]) -> None:
        self.nodes.append(rename_node(node, renamed))
        fields = parse(self.nodes[-1])
        operator = next((text(v) for n, v in fields if n == 4), "")
        for place, name in enumerate(text(v) for n, v in fields if n == 1):
            how = f"{operator}:{place}:transposed" if _transposes(fields) else f"{operator}:{place}"
            self.uses.setdefault(name, how)

    def _import(self, fields: dict[int, Value], path: Path) -> None:
        domain, version = text(fields.get(1, b"")), fields.get(2)
        if not isinstance(version, int):
            raise IntegrityError("an operator set without a version", where=str(path))
        if self.opsets.setdefault(domain, version) != version:
            raise ConfigError(
                f"the bundle's graphs use operator set {domain or 'ai.onnx'} {version} and "
                f"{self.opsets[domain]}, which one file cannot",
                where=str(path),
                remedy="export the bundle again",
            )

    def declare(self, name: str, data_type: int, shape: Sequence[int | str], *, out: bool) -> None:
        """Make a tensor an input or output of the file."""
        (self.outputs if out else self.inputs).append(_value_info(name, data_type, shape))

    def write(self, path: Path, metadata: Mapping[str, str], producer: str) -> int:
        """Write the file atomically, streaming the constants; returns its size in bytes.

        Raises:
            ConfigError: it would exceed protobuf's 2 GiB.
            StorageError: no space left.
        """
        contents = self._contents()
        if contents.size > _PROTOBUF_LIMIT_BYTES - (1 << 20):
            raise ConfigError(
                "one ONNX file cannot hold more than 2 GiB",
                where=str(path),
                remedy="deploy with --dtype fp16 or int8-weights",
            )
        with replacing(path) as temporary, disk.create(temporary) as stream:
            for block in self._blocks(contents, metadata, producer):
                stream.write(block)
            return stream.tell()

    def serialized(self) -> bytes:
        """The model as bytes, for graphs whose constants are small."""
        return b"".join(self._blocks(self._contents(), {}, "edgeladder"))

    def _contents(self) -> _Contents:
        nodes = _without_training_outputs(self.nodes, self.outputs)
        fields = [encode(1, node) for node in nodes] + [encode(2, "edgeladder")]
        fields += [encode(11, value) for value in self.inputs]
        fields += [encode(12, value) for value in self.outputs]
        constants = []
        for tensor in self.tensors.values():
            head = tensor.head()
            constants.append((varint(5 << 3 | 2) + varint(len(head) + tensor.size) + head, tensor))
        return _Contents(fields, constants)

    def _blocks(
        self, contents: _Contents, metadata: Mapping[str, str], producer: str
    ) -> Iterator[bytes]:
        """The ModelProto, a block at a time."""
        yield message([(1, self.ir_version), (2, producer)])
        yield varint(7 << 3 | 2) + varint(contents.size)
        yield from contents.fields
        for head, tensor in contents.constants:
            yield head
            yield from tensor.blocks()
        for domain, version in self.opsets.items():
            yield encode(8, message([(1, domain), (2, version)] if domain else [(2, version)]))
        for key, words in metadata.items():
            yield encode(14, message([(1, key), (2, words)]))
        for function in self.functions.values():
            yield encode(25, function)


@dataclass(frozen=True)
class _Contents:
    """A GraphProto about to be written."""

    fields: list[bytes]
    constants: list[tuple[bytes, Tensor]]  # with what comes before their raw data

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return sum(map(len, self.fields)) + sum(len(h) + t.size for h, t in self.constants)


def _attribute(name: str, value: Attribute) -> bytes:
    """An AttributeProto; the last field is its type."""
    if isinstance(value, int):
        return message([(1, name), (3, value), (20, 2)])
    if isinstance(value, float):
        return message([(1, name), (-2, struct.pack("<f", value)), (20, 1)])
    if isinstance(value, str):
        return message([(1, name), (4, value), (20, 3)])
    return message([(1, name), *((8, item) for item in value), (20, 7)])


def _described(value: bytes) -> tuple[str, int | None]:
    """Name and number of axes of a ValueInfoProto; None where it has no shape."""
    name, rank = "", None
    for number, given in parse(value):
        if number == 1:
            name = text(given)
        elif number == 2 and isinstance(given, bytes):
            tensor = next((v for n, v in parse(given) if n == 1 and isinstance(v, bytes)), b"")
            shape = [v for n, v in parse(tensor) if n == 2 and isinstance(v, bytes)]
            rank = sum(n == 1 for n, _ in parse(shape[0])) if shape else None
    return name, rank


def _without_training_outputs(nodes: Sequence[bytes], outputs: Sequence[bytes]) -> list[bytes]:
    """Layer norms without the mean and deviation that no node reads.

    Exporters write all three outputs; OpenVINO's reader refuses what is there for training only.
    """
    read = {text(value) for item in outputs for number, value in parse(item) if number == 1}
    read = read.union(*map(_names_read, nodes))
    found = []
    for node in nodes:
        fields = parse(node)
        if (4, b"LayerNormalization") in fields:
            given = [value for number, value in fields if number == 2]
            while len(given) > 1 and text(given[-1]) not in read:
                given.pop()
            others = [field for field in fields if field[0] != 2]
            node = message([*others, *((2, name) for name in given)])
        found.append(node)
    return found


def _names_read(node: bytes) -> set[str]:
    """Tensors that a NodeProto reads, those that its subgraphs read or give among them."""
    names = set()
    for number, value in parse(node):
        if number == 1:
            names.add(text(value))
        elif number == 5 and isinstance(value, bytes):
            for place, graph in parse(value):
                if place in (6, 11) and isinstance(graph, bytes):
                    names |= _graph_reads(graph)
    return names


def _graph_reads(graph: bytes) -> set[str]:
    names: set[str] = set()
    for number, value in parse(graph):
        if number == 1 and isinstance(value, bytes):
            names |= _names_read(value)
        elif number == 12 and isinstance(value, bytes):
            names |= {text(word) for place, word in parse(value) if place == 1}
    return names


def one_node_model(
    operator: str, source: int, target: int, attributes: Mapping[str, Attribute] | None = None
) -> bytes:
    """y = operator(x) over a vector, as a serialized model of opset 13.

    Args:
        source, target: data types of x and y.
        attributes: the node's.
    """
    graph = Graph(opsets={"": 13})
    graph.declare("x", source, ["N"], out=False)
    graph.add(operator, ["x"], "y", attributes)
    graph.declare("y", target, ["N"], out=True)
    return graph.serialized()


def output_after_the_end(name: str, data_type: int, shape: Sequence[int | str]) -> bytes:
    """Bytes that, put after a model file's end, make one of its tensors an output as well.

    A protobuf field that comes again is merged, and a repeated one grows.
    """
    return encode(7, message([(12, _value_info(name, data_type, shape))]))


def _value_info(name: str, data_type: int, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(encode(1, message([(1, d)] if isinstance(d, int) else [(2, d)])) for d in shape)
    tensor_type = message([(1, data_type), (2, dims)])
    return message([(1, name), (2, message([(1, tensor_type)]))])


def _transposes(fields: Fields) -> bool:
    for number, value in fields:
        if number == 5 and isinstance(value, bytes):
            attribute = dict(parse(value))
            if attribute.get(1) == b"transB" and attribute.get(3):
                return True
    return False
