"""Checkpoints that a power cut cannot tear: two generations, each one safetensors file.

Arrays are written and read one after the other without a copy of the whole, because a checkpoint
is written exactly when memory is short. The loop's own state (step, sampler, random state) is
JSON in the file's metadata, so that one rename publishes everything. safetensors format:
8 bytes little-endian header length, JSON header, raw little-endian data.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.errors import IntegrityError
from edgeladder.core.files import replacing

KEEP = 2  # generations: the newest, and the one before should the newest be unreadable
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
}
_NAMES = {code: name for name, code in _DTYPES.items()}
_BLOCK_BYTES = 1 << 20


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically, one tensor at a time.

    Args:
        path: the final file; it is complete or as before.
        tensors: any shapes, C order, of numpy's plain types.
        metadata: text by key; a `crc32` over the data is added.

    Raises:
        StorageError: the disk is full or read-only; older checkpoints stay.
    """
    header: dict[str, Any] = {}
    offset, check = 0, 0
    for name, array in tensors.items():
        stop = offset + array.nbytes
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, stop],
        }
        check = zlib.crc32(_bytes(array), check)
        offset = stop
    header["__metadata__"] = {**metadata, "crc32": str(check)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned, as the format asks
    with replacing(path) as temporary, open(temporary, "wb", buffering=0) as stream:
        _write(stream.fileno(), memoryview(len(text).to_bytes(8, "little") + text))
        for array in tensors.values():
            _write(stream.fileno(), _bytes(array))


def _write(descriptor: int, data: memoryview) -> None:
    for start in range(0, len(data), _BLOCK_BYTES):
        block = data[start : start + _BLOCK_BYTES]
        while block:
            block = block[os.write(descriptor, block) :]


class TensorFile(Mapping[str, np.ndarray]):
    """A safetensors file read lazily: each access reads that one tensor, nothing is mapped."""

    def __init__(self, path: Path):
        """Read the header.

        Raises:
            IntegrityError: not a whole safetensors file.
        """
        self.path = Path(path)
        try:
            with open(self.path, "rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if not 2 <= length <= self.path.stat().st_size - 8:
                    raise ValueError("the header is cut off")
                header = json.loads(stream.read(length))
            self.metadata: dict[str, str] = header.pop("__metadata__", {})
            self._entries: dict[str, dict[str, Any]] = header
            self._start = 8 + length
            size = self._start + max((e["data_offsets"][1] for e in header.values()), default=0)
            if self.path.stat().st_size < size:
                raise ValueError("the data is cut off")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"not a whole safetensors file: {error}",
                where=str(self.path),
                remedy="delete this file; an older generation beside it is used instead",
            ) from error

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self._entries[name]
        start, stop = entry["data_offsets"]
        array = np.empty(entry["shape"], dtype=_NAMES[entry["dtype"]])
        with open(self.path, "rb", buffering=0) as stream:
            stream.seek(self._start + start)
            view = array.reshape(-1).view(np.uint8).data
            done = 0
            while done < stop - start:
                count = stream.readinto(view[done:])
                if not count:
                    raise IntegrityError("the data is cut off", where=str(self.path))
                done += count
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def part(self, names: Iterable[str]) -> TensorFile:
        """The same file showing only `names`, still lazily."""
        view = TensorFile.__new__(TensorFile)
        view.path, view.metadata, view._start = self.path, self.metadata, self._start
        view._entries = {name: self._entries[name] for name in names}
        return view

    def intact(self) -> bool:
        """Whether the data still has the checksum it was written with."""
        expected = self.metadata.get("crc32")
        check = 0
        with open(self.path, "rb", buffering=0) as stream:
            stream.seek(self._start)
            while block := stream.read(_BLOCK_BYTES):
                check = zlib.crc32(block, check)
        return expected is None or int(expected) == check


class Checkpoints:
    """The `checkpoints/` folder of a run."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    def save(self, step: int, tensors: Mapping[str, np.ndarray], loop: dict[str, Any]) -> Path:
        """Write generation `step` and remove all but the two newest.

        Raises:
            StorageError: no space; the generations already there are untouched.
        """
        path = self.folder / f"step-{step:09d}.safetensors"
        write_tensors(path, tensors, {"loop": json.dumps({**loop, "step": step})})
        for old in self._generations()[KEEP:]:
            old.unlink(missing_ok=True)
        return path

    def latest(self) -> tuple[TensorFile, dict[str, Any]] | None:
        """The newest generation that is whole, with the loop's state; None where there is none."""
        for path in self._generations():
            try:
                tensors = TensorFile(path)
                loop = json.loads(tensors.metadata["loop"])
                if tensors.intact():
                    return tensors, loop
            except (IntegrityError, KeyError, ValueError):
                continue
        return None

    def clean(self) -> None:
        """Remove what a killed writer left behind."""
        for stray in self.folder.glob(".step-*.tmp"):
            stray.unlink(missing_ok=True)

    def _generations(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)
