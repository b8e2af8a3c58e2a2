"""Read safetensors piece by piece: many adapters, little memory, no mapping.

The library maps whole files, whose pages would count as the controller's memory. The format is
eight bytes of header length, a JSON header, then the tensors' bytes:
https://huggingface.co/docs/safetensors (format section).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_HEADER_LIMIT_BYTES = 16 << 20
_TYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@dataclass(frozen=True)
class Tensor:
    """Where one tensor's values lie in its file."""

    dtype: np.dtype
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


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, every byte of which they must account for.

    Raises:
        ValueError: not a safetensors file, or a type that numpy lacks.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 0 < length <= min(_HEADER_LIMIT_BYTES, size - 8):
            raise ValueError("not a safetensors file")
        values = json.loads(stream.read(length))
    if not isinstance(values, dict):
        raise ValueError("not a safetensors header")
    values.pop("__metadata__", None)
    tensors: dict[str, Tensor] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in values.items():
        try:
            dtype = np.dtype(_TYPES[entry["dtype"]])
            shape = tuple(int(n) for n in entry["shape"])
            start, stop = (int(n) for n in entry["data_offsets"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"tensor {name!r} is not readable") from error
        if min((*shape, 0)) < 0 or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name!r} is not as long as its shape says")
        tensors[name] = Tensor(dtype, shape, 8 + length + start)
        spans.append((start, stop))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise ValueError("bytes that belong to no tensor")
        end = stop
    if 8 + length + end != size:
        raise ValueError("bytes that belong to no tensor")
    return tensors


def read_values(path: Path, tensor: Tensor, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Values start to stop of a tensor, flat."""
    stop = tensor.size if stop is None else stop
    with open(path, "rb") as stream:
        stream.seek(tensor.start + start * tensor.dtype.itemsize)
        values = np.fromfile(stream, dtype=tensor.dtype, count=stop - start)
    if values.size != stop - start:
        raise ValueError("the file ends too soon")
    return values
