"""ONNX files as bytes: reading and writing their protobuf fields without the onnx package.

An ONNX file is a protobuf message; this module knows just the fields it must touch (onnx.proto3,
field numbers below) and passes everything else on byte for byte.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.confinement import AGAIN, plain_size
from edgeladder.core.errors import ConfigError, IntegrityError

FLOAT, UINT8, INT8, INT64, FLOAT16 = 1, 2, 3, 7, 10  # TensorProto.DataType
_NUMPY: dict[int, np.dtype[Any]] = {
    FLOAT: np.dtype("float32"),
    UINT8: np.dtype("uint8"),
    INT8: np.dtype("int8"),
    INT64: np.dtype("int64"),
    FLOAT16: np.dtype("float16"),
}
_CODE = {dtype: code for code, dtype in _NUMPY.items()}
_BLOCK_BYTES = 1 << 20
_VARINT_BITS = 70  # ten bytes hold 64 bits

Value = int | bytes
Fields = list[tuple[int, Value]]


def varint(number: int) -> bytes:
    """A number in base 128, negative ones as 64-bit two's complement."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < _VARINT_BITS:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
    raise IndexError


def fields_of(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """A message's fields in order, without copying: varints as int, everything else as views.

    Fixed-width values (floats) carry a negative field number, so that `message` can tell them
    from length-delimited ones.

    Raises:
        IntegrityError: not a protobuf message, or cut short.
    """
    at = 0
    try:
        while at < len(view):
            key, at = _read_varint(view, at)
            number, kind = key >> 3, key & 7
            if kind == 0:
                value, at = _read_varint(view, at)
                yield number, value
                continue
            if kind == 2:
                size, at = _read_varint(view, at)
            else:
                size, number = {1: 8, 5: 4}[kind], -number
            if at + size > len(view):
                raise IndexError
            yield number, view[at : at + size]
            at += size
    except LookupError:
        raise IntegrityError("not an ONNX file, or cut short", remedy=AGAIN) from None


def parse(data: bytes) -> Fields:
    """A message's fields in order: varints as int, everything else as bytes (see `fields_of`).

    Raises:
        IntegrityError: not a protobuf message, or cut short.
    """
    return [
        (number, value if isinstance(value, int) else bytes(value))
        for number, value in fields_of(memoryview(data))
    ]


def encode(number: int, value: Value | str) -> bytes:
    """One field on the wire; a negative number marks a fixed-width value."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, str):
        value = value.encode("utf-8")
    if number < 0:
        return varint(-number << 3 | (1 if len(value) == 8 else 5)) + value
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(fields: Iterable[tuple[int, Value | str]]) -> bytes:
    """A message of its fields: the inverse of `parse`."""
    return b"".join(encode(number, value) for number, value in fields)


def text(value: Value) -> str:
    """A string field.

    Raises:
        IntegrityError: not UTF-8.
    """
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError:
        raise IntegrityError("a name in an ONNX file is not UTF-8", remedy=AGAIN) from None


@dataclass(frozen=True)
class Tensor:
    """A constant: its head in memory, its bytes in memory or in a file."""

    name: str
    dims: tuple[int, ...]
    data_type: int
    data: bytes | None = None
    path: Path | None = None
    offset: int = 0
    size: int = 0
    make: Callable[[], np.ndarray] | None = None  # converted only as it is written

    @classmethod
    def of(cls, name: str, array: np.ndarray) -> Tensor:
        """A constant from an array."""
        data = np.ascontiguousarray(array).tobytes()
        code = _CODE[array.dtype]
        return cls(name, tuple(array.shape), code, data, size=len(data))

    @classmethod
    def later(cls, name: str, dtype: str, dims: tuple[int, ...], make: Callable[[], Any]) -> Tensor:
        """A constant that `make` computes when it is written: (dims) of `dtype`."""
        kind = np.dtype(dtype)
        size = int(np.prod(dims, dtype=np.int64)) * kind.itemsize
        return cls(name, dims, _CODE[kind], None, size=size, make=make)

    def array(self) -> np.ndarray:
        """Its values; read now, if they are in a file."""
        if self.data_type not in _NUMPY:
            raise ConfigError(f"constant {self.name!r} has a type that cannot be converted")
        data = self.data if self.data is not None else b"".join(self.blocks())
        try:
            return np.frombuffer(data, _NUMPY[self.data_type]).reshape(self.dims)
        except ValueError as error:
            raise IntegrityError(
                f"constant {self.name!r} is not of its shape: {error}", remedy=AGAIN
            ) from error

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, a block at a time."""
        if self.data is not None:
            yield self.data
            return
        if self.make is not None:
            yield np.ascontiguousarray(self.make()).tobytes()
            return
        assert self.path is not None  # data, make or path is set
        left = self.size
        with open(self.path, "rb") as stream:
            stream.seek(self.offset)
            while left:
                block = stream.read(min(left, _BLOCK_BYTES))
                if not block:
                    raise IntegrityError("external data cut short", where=str(self.path))
                left -= len(block)
                yield block

    def head(self) -> bytes:
        """The message up to and with the length of its raw data."""
        dims = b"".join(encode(1, d) for d in self.dims)
        start = dims + encode(2, self.data_type) + encode(8, self.name)
        return start + varint(9 << 3 | 2) + varint(self.size)


def rename_node(node: bytes, renamed: Callable[[str], str]) -> bytes:
    """A NodeProto with its tensors renamed, in its subgraphs too."""
    fields: Fields = []
    for number, value in parse(node):
        if number in (1, 2, 3) and isinstance(value, bytes):
            value = renamed(text(value)).encode()
        elif number == 5 and isinstance(value, bytes):
            value = _rename_attribute(value, renamed)
        if number != 6:  # documentation
            fields.append((number, value))
    return message(fields)


def _rename_attribute(attribute: bytes, renamed: Callable[[str], str]) -> bytes:
    fields = parse(attribute)
    if not any(number in (6, 11) for number, _ in fields):
        return attribute
    return message(
        (n, _rename_graph(v, renamed) if n in (6, 11) and isinstance(v, bytes) else v)
        for n, v in fields
    )


def _rename_graph(graph: bytes, renamed: Callable[[str], str]) -> bytes:
    fields: Fields = []
    for number, value in parse(graph):
        if number == 1 and isinstance(value, bytes):
            value = rename_node(value, renamed)
        elif number in (5, 11, 12, 13) and isinstance(value, bytes):
            place = 8 if number == 5 else 1  # a tensor's or a value's name
            value = message(
                (n, renamed(text(v)).encode() if n == place else v) for n, v in parse(value)
            )
        fields.append((number, value))
    return message(fields)


@dataclass(frozen=True)
class ExternalData:
    """Which bytes of which file a tensor's values are."""

    name: str  # of the file, relative to the model's folder
    offset: int
    size: int


def external_data(entries: Sequence[bytes], folder: Path) -> ExternalData:
    """Read and check a tensor's `external_data`, whoever wrote it.

    Args:
        entries: the StringStringEntryProto of each key.
        folder: of the model file, above which no location may lead.

    Raises:
        IntegrityError: no location, one that leads elsewhere or to a link or device, one given
            twice, or bytes beyond the file's end.
    """
    known: dict[str, str] = {}
    for entry in entries:
        pair = dict(parse(entry))
        key = text(pair.get(1, b""))
        if key in known:  # readers differ in which one they take
            raise IntegrityError(f"external data with two entries {key!r}", remedy=AGAIN)
        known[key] = text(pair.get(2, b""))
    name = known.get("location", "")
    there = plain_size(folder, name)
    offset = _count(known.get("offset", "0"), name)
    size = _count(known["length"], name) if "length" in known else there - offset
    if size < 0 or offset + size > there:
        raise IntegrityError(
            f"external data of {offset + size} bytes in a file of {there}",
            where=str(folder / name),
            remedy=AGAIN,
        )
    return ExternalData(name, offset, size)


def _count(words: str, name: str) -> int:
    if not (words.isascii() and words.isdigit() and len(words) < 20):
        raise IntegrityError(f"external data at {words[:50]!r} of {name}", remedy=AGAIN)
    return int(words)


def read_tensor(data: bytes, folder: Path) -> Tensor:
    """A TensorProto; typed data fields become raw bytes, external data stays where it is.

    Raises:
        IntegrityError: not a tensor, or its external data lead elsewhere.
    """
    dims: list[int] = []
    name, data_type, raw = "", 0, None
    external: list[bytes] = []
    typed: list[bytes] = []
    for number, value in parse(data):
        if number == 1:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == 2 and isinstance(value, int):
            data_type = value
        elif number == 8:
            name = text(value)
        elif number == 9 and isinstance(value, bytes):
            raw = value
        elif number == 13 and isinstance(value, bytes):
            external.append(value)
        elif abs(number) in (4, 5, 7, 10, 11):
            typed.append(_typed(abs(number), value, data_type))
    if external:
        there = external_data(external, folder)
        path = folder / there.name
        return Tensor(name, tuple(dims), data_type, None, path, there.offset, there.size)
    content = raw if raw is not None else b"".join(typed)
    return Tensor(name, tuple(dims), data_type, content, size=len(content))


def _packed(data: bytes) -> list[int]:
    view, at, numbers = memoryview(data), 0, []
    try:
        while at < len(view):
            number, at = _read_varint(view, at)
            numbers.append(number - (1 << 64) if number >> 63 else number)
    except IndexError:
        raise IntegrityError("a list of numbers is cut short", remedy=AGAIN) from None
    return numbers


def _typed(number: int, value: Value, data_type: int) -> bytes:
    if number in (4, 10):  # float_data, double_data: packed little-endian already
        return value if isinstance(value, bytes) else struct.pack("<q", value)
    numbers = [value] if isinstance(value, int) else _packed(value)
    kinds = {2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "u1", 10: "u2", 16: "u2"}
    with contextlib.suppress(KeyError):
        mask = (1 << 64) - 1
        return np.array([n & mask for n in numbers], "u8").astype("<" + kinds[data_type]).tobytes()
    raise ConfigError(f"a constant has data type {data_type}, which is not supported")
