"""One safetensors codec for everything that we store as tensors.

The format: 8 bytes of header length (little-endian), a JSON header, the tensors' raw bytes, which
the header accounts for to the last one (https://huggingface.co/docs/safetensors, format section).
Our files carry a checksum over all of it, length and header included, because a flipped bit in a
step's number is as bad as one in a weight; it guards against accidents, not against forgers.
Files are written tensor by tensor without a copy of the whole, because a checkpoint is written
exactly when memory is short, and read by `read` calls into arrays of our own: nothing is mapped,
because mapped pages count against the budget. The library's reader (0.8, `backend="pread"`) takes
as little memory, but knows neither parts of a tensor nor our checksum.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core import disk
from edgeladder.core.errors import IntegrityError
from edgeladder.core.files import replacing
from edgeladder.core.plain_files import NotPlainError, open_plain

Array = np.ndarray

CHECKSUM = "checksum"  # metadata key: CRC-32 over the whole file, its own digits as zeros
_CODES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_DTYPES: dict[str, np.dtype[Any]] = {code: np.dtype(name) for name, code in _CODES.items()}
_METADATA = "__metadata__"
# the checksum is the first thing in a header, so that its place is known before anything is parsed
_DIGITS = 8  # hexadecimal
_LENGTH_BYTES = 8
_OPENING = f'{{"{_METADATA}":{{"{CHECKSUM}":"'.encode()
_CHECKSUM_AT = _LENGTH_BYTES + len(_OPENING)
_BLOCK_BYTES = 1 << 20
_HEADER_LIMIT_BYTES = 16 << 20


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor's values lie in its file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int  # byte in the file

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it can be averaged."""
        return self.dtype.kind == "f"


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    entries: dict[str, TensorEntry]  # in the order of the header
    metadata: dict[str, str]


def encode_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]],
    metadata: Mapping[str, str],
    room_bytes: int | None = None,
) -> bytes:
    """A file's length and header, with zeros where `with_checksum` puts the checksum.

    Args:
        tensors: name, numpy's dtype name and shape of each, in the order of their bytes.
        metadata: text by key.
        room_bytes: pad to this size; None: to a multiple of 8, so that the data are aligned.

    Raises:
        ValueError: it does not fit into `room_bytes`.
    """
    others = {key: text for key, text in metadata.items() if key != CHECKSUM}
    header: dict[str, object] = {_METADATA: {CHECKSUM: "0" * _DIGITS, **others}}
    offset = 0
    for name, dtype, shape in tensors:
        stop = offset + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    size = len(text) + -len(text) % 8 if room_bytes is None else room_bytes - 8
    if len(text) > size:
        raise ValueError(f"the header needs {len(text)} bytes, there are {size}")
    return size.to_bytes(8, "little") + text.ljust(size)


def with_checksum(header: bytes, checksum: int) -> bytes:
    """`encode_header`'s bytes with the CRC-32 over them and all data after them in its place."""
    digits = f"{checksum:0{_DIGITS}x}".encode()
    return header[:_CHECKSUM_AT] + digits + header[_CHECKSUM_AT + _DIGITS :]


def stored_checksum(header: bytes) -> int | None:
    """The checksum that the bytes of a header tell; None where they tell none."""
    digits = header[_CHECKSUM_AT : _CHECKSUM_AT + _DIGITS]
    if header[_LENGTH_BYTES:_CHECKSUM_AT] != _OPENING or len(digits) < _DIGITS:
        return None
    try:
        checksum = int(digits, 16)
    except ValueError:
        return None
    return checksum if with_checksum(header, checksum) == header else None  # one spelling only


def is_intact(path: Path) -> bool:
    """Whether every byte of a file, its header's among them, is as it was written.

    A file without a checksum, of another program or of a version before 0.3, is not; nor is one
    that cannot be read.
    """
    try:
        with open_plain(path) as stream:
            block = stream.read(_BLOCK_BYTES)
            expected = stored_checksum(block)
            if expected is None:
                return False
            checksum = zlib.crc32(with_checksum(block, 0))
            while block := stream.read(_BLOCK_BYTES):
                checksum = zlib.crc32(block, checksum)
    except (OSError, NotPlainError):
        return False
    return expected == checksum


def write_tensors(
    path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file atomically, one tensor at a time, with a checksum in its metadata.

    Args:
        path: the final file; it is complete or as before.
        tensors: any shapes, of numpy's plain types; widest types first, then by name, as the
            library writes them.
        metadata: text by key.

    Raises:
        StorageError: the disk is full or read-only.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header = encode_header(
        ((name, tensors[name].dtype.name, tensors[name].shape) for name in names), metadata or {}
    )
    checksum = zlib.crc32(header)
    for name in names:
        checksum = zlib.crc32(_bytes(tensors[name]), checksum)
    with replacing(path) as temporary, disk.create(temporary) as stream:
        stream.write(with_checksum(header, checksum))
        for name in names:
            stream.write(_bytes(tensors[name]))


def read_header(path: Path) -> Header:
    """A file's header, every byte of whose data belongs to exactly one tensor.

    Raises:
        ValueError: not a whole safetensors file, or a type that numpy lacks.
    """
    with open_plain(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 0 < length <= min(_HEADER_LIMIT_BYTES, size - 8):
            raise ValueError("not a safetensors file, or its header is cut off")
        try:
            values = json.loads(stream.read(length))
        except RecursionError:
            raise ValueError("not a safetensors header: nested too deeply") from None
    metadata = values.pop(_METADATA, None) or {} if isinstance(values, dict) else None
    if not isinstance(metadata, dict):
        raise ValueError("not a safetensors header")
    entries: dict[str, TensorEntry] = {}
    spans: list[tuple[int, int]] = []
    for name, value in values.items():
        try:
            entry = TensorEntry(
                _DTYPES[value["dtype"]], tuple(int(n) for n in value["shape"]), 8 + length
            )
            start, stop = (int(n) for n in value["data_offsets"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"tensor {name!r} is not readable") from error
        if min((*entry.shape, 0)) < 0 or stop - start != entry.size * entry.dtype.itemsize:
            raise ValueError(f"tensor {name!r} is not as long as its shape says")
        entries[name] = TensorEntry(entry.dtype, entry.shape, entry.start + start)
        spans.append((start, stop))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise ValueError("bytes that belong to no tensor")
        end = stop
    if 8 + length + end != size:
        raise ValueError("the data is cut off, or bytes belong to no tensor")
    return Header(entries, metadata)


def read_values(path: Path, entry: TensorEntry, start: int = 0, stop: int | None = None) -> Array:
    """Values start to stop of a tensor, flat.

    Raises:
        ValueError: the file ends too soon.
    """
    values = np.empty((entry.size if stop is None else stop) - start, entry.dtype)
    left = values.view(np.uint8).data
    with open(path, "rb", buffering=0) as stream:
        stream.seek(entry.start + start * entry.dtype.itemsize)
        while left:
            count = stream.readinto(left)
            if not count:
                raise ValueError("the file ends too soon")
            left = left[count:]
    return values


class TensorFile(Mapping[str, Array]):
    """A file read lazily: each access reads that one tensor."""

    def __init__(self, path: Path | str, *, remedy: str = "write or copy this file again"):
        """Read the header.

        Raises:
            IntegrityError: missing, or not a whole safetensors file; with `remedy`.
        """
        self.path, self._remedy = Path(path), remedy
        try:
            self.header = read_header(self.path)
        except (OSError, ValueError) as error:
            raise self._broken(error) from error
        self.metadata = self.header.metadata
        self._names = list(self.header.entries)

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        entry = self.header.entries[name]
        try:
            return read_values(self.path, entry).reshape(entry.shape)
        except (OSError, ValueError) as error:
            raise self._broken(error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names  # Mapping's own would read the tensor

    def part(self, names: Iterable[str]) -> TensorFile:
        """The same file showing only `names`, still lazily."""
        view = TensorFile.__new__(TensorFile)
        view.path, view.header, view.metadata = self.path, self.header, self.metadata
        view._remedy, view._names = self._remedy, list(names)
        return view

    def intact(self) -> bool:
        """Whether every byte of the file is as it was written: see `is_intact`."""
        return is_intact(self.path)

    def _broken(self, error: Exception) -> IntegrityError:
        return IntegrityError(
            f"not a whole safetensors file: {error}", where=str(self.path), remedy=self._remedy
        )


def _bytes(array: Array) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
