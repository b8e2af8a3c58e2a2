"""float32 <-> float16 by onnxruntime's Cast, which is five to fifteen times numpy's speed.

numpy converts float16 one by one in software: 1.4 ms there and back for a hidden state of ViT-B/16,
a sixth of the time its block takes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.onnx_graph import one_node_model
from edgeladder.core.protobuf import FLOAT, FLOAT16

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_SMALL = 4096  # below this many values a session's overhead is more than it saves


def to_float16(values: np.ndarray) -> np.ndarray:
    """float32 -> float16, to nearest even, C-contiguous and of the same shape."""
    if values.size < _SMALL:
        return values.astype(np.float16, order="C")
    flat = np.ascontiguousarray(values).reshape(-1)
    (out,) = _session(FLOAT, FLOAT16).run(None, {"x": flat})
    shaped: np.ndarray = out.reshape(values.shape)
    return shaped


class Float16Block:
    """Two buffers of one size, float16 and float32, and the conversion between them.

    For loops that convert block after block: fresh buffers would cost more in page faults, where
    the allocator gives large ones back at once, than the conversion itself.
    """

    def __init__(self, count: int):
        """Args: count: values per block."""
        import onnxruntime

        self.float16 = np.zeros(count, np.float16)
        self.float32 = np.empty(count, np.float32)
        session = _session(FLOAT16, FLOAT)
        binding = session.io_binding()
        make = onnxruntime.OrtValue.ortvalue_from_numpy  # shares a CPU array's memory
        self._values = make(self.float16), make(self.float32)
        binding.bind_ortvalue_input("x", self._values[0])
        binding.bind_ortvalue_output("y", self._values[1])
        self._run = functools.partial(session.run_with_iobinding, binding)

    def convert(self) -> None:
        """All of `float16` into `float32`."""
        self._run()


@functools.cache
def _session(source: int, target: int) -> InferenceSession:
    from edgeladder.runtime.session import open_plain

    return open_plain(one_node_model("Cast", source, target, {"to": target}), threads=1)
