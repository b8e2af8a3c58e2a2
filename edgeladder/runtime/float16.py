"""float32 <-> float16 by onnxruntime's Cast, which is five to fifteen times numpy's speed.

numpy converts halves one by one in software: 1.4 ms there and back for a hidden state of ViT-B/16,
a sixth of the time its block takes. The graph is a single node, so it is spelt out here.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

_FLOAT, _FLOAT16 = 1, 10  # onnx.TensorProto.DataType
_SMALL = 4096  # below this many values a session's overhead is more than it saves


def to_float16(values: np.ndarray) -> np.ndarray:
    """float32 -> float16, to nearest even, C-contiguous and of the same shape."""
    if values.size < _SMALL:
        return values.astype(np.float16, order="C")
    return _cast(_FLOAT, _FLOAT16, values)


def from_float16(values: np.ndarray) -> np.ndarray:
    """float16 -> float32, exact, C-contiguous and of the same shape."""
    if values.size < _SMALL:
        return values.astype(np.float32, order="C")
    return _cast(_FLOAT16, _FLOAT, values)


def _cast(source: int, target: int, values: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(values).reshape(-1)
    (out,) = _session(source, target).run(None, {"x": flat})
    shaped: np.ndarray = out.reshape(values.shape)
    return shaped


class Float16Block:
    """Two buffers of one size, halves and singles, and the conversion between them.

    For loops that convert block after block: fresh buffers would cost more in page faults, where
    the allocator gives large ones back at once, than the conversion itself.
    """

    def __init__(self, count: int):
        """Args: count: values per block."""
        import onnxruntime

        self.half = np.zeros(count, np.float16)
        self.single = np.empty(count, np.float32)
        session = _session(_FLOAT16, _FLOAT)
        binding = session.io_binding()
        make = onnxruntime.OrtValue.ortvalue_from_numpy  # shares a CPU array's memory
        self._values = make(self.half), make(self.single)
        binding.bind_ortvalue_input("x", self._values[0])
        binding.bind_ortvalue_output("y", self._values[1])
        self._run = functools.partial(session.run_with_iobinding, binding)

    def convert(self) -> None:
        """All of `half` into `single`."""
        self._run()


@functools.cache
def _session(source: int, target: int) -> Any:
    import onnxruntime

    from edgeladder.runtime.session import use_threads

    options = onnxruntime.SessionOptions()
    use_threads(options, 1, share=False)
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    model = _model(source, target)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _model(source: int, target: int) -> bytes:
    """y = Cast(x) over a vector, as an onnx.ModelProto of opset 13, IR version 8."""
    attribute = _field(1, b"to") + _field(3, target) + _field(20, 2)  # 2: an integer
    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"Cast") + _field(5, attribute)
    graph = _field(1, node) + _field(2, b"cast")
    graph += _field(11, _vector(b"x", source)) + _field(12, _vector(b"y", target))
    return _field(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _field(2, 13))


def _vector(name: bytes, data_type: int) -> bytes:
    """A ValueInfoProto of shape (N,)."""
    shape = _field(1, _field(2, b"N"))
    return _field(1, name) + _field(2, _field(1, _field(1, data_type) + _field(2, shape)))


def _field(number: int, value: int | bytes) -> bytes:
    """One protobuf field; all numbers and lengths here are below 128, one byte each, or two."""
    tag = number << 3 | (0 if isinstance(value, int) else 2)
    if isinstance(value, int):
        return _varint(tag) + _varint(value)
    return _varint(tag) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 0x7F | 0x80, number >> 7])
