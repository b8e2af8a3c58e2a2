"""onnxruntime sessions set up for little memory, and runs on buffers that we own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_threads_set: list[int] = []


def share_threads(threads: int) -> bool:
    """One pool for all sessions where this onnxruntime can (1.20 or later, before the first one).

    Two sessions with spinning pools of their own fight over the cores.
    """
    if not hasattr(onnxruntime, "set_global_thread_pool_sizes"):
        return False
    if not _threads_set:
        try:
            onnxruntime.set_global_thread_pool_sizes(threads, 1)
        except Exception:  # the environment was made before us: sessions keep their own pools
            return False
        _threads_set.append(threads)
    return _threads_set[0] == threads


def use_threads(options: Any, threads: int, *, share: bool = True) -> bool:
    """Give a session its threads; whether they are those of all sessions.

    Args:
        share: join the pool of all sessions, made now where it can be. Once that pool exists
            onnxruntime refuses sessions with a pool of their own, so all of them join it.
    """
    if _threads_set or (share and threads > 1 and share_threads(threads)):
        options.use_per_session_threads = False
        return True
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return False


IN_FLOAT = {"session.qdq_matmulnbits_accuracy_level": "1"}


def compute_in_float(options: Any) -> None:
    """Multiply with int8 weights as the graph says: dequantised, in float32.

    onnxruntime 1.20 and later would quantise the activations too, wherever a product's weights are
    dequantised: no faster here, 6e-3 off on nano's embeddings, and not the same on every processor.
    """
    for key, value in IN_FLOAT.items():
        options.add_session_config_entry(key, value)


def open_session(
    path: Path, threads: int, *, as_written: bool = False, arena: bool = True
) -> onnxruntime.InferenceSession:
    """A session that plans no memory ahead and runs nodes in the order they were written.

    `enable_mem_pattern` off saves 100 MB of peak on the reference ladder; the written order lets
    activations die early; common-subexpression elimination would undo recomputation, and fusing a
    sum with the layer norm after it forgets the deviation that the backward pass reads.

    Args:
        as_written: no fusion at all. Our own graphs are fused already, and a node that
            onnxruntime fuses is run last: on the reference ladder that keeps 46 MB of activations
            alive instead of 16 and saves no time.
        arena: let onnxruntime keep a heap of its own, which does not shrink.
    """
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = arena
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    use_threads(options, threads)
    return onnxruntime.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["CommonSubexpressionElimination", "SkipLayerNormFusion"],
    )


def shared(array: np.ndarray) -> Any:
    """An OrtValue over the array's own memory; the array must be C-contiguous and outlive it."""
    assert array.flags.c_contiguous
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


class Bound:
    """A session with its inputs and outputs bound to arrays of ours."""

    def __init__(self, session: onnxruntime.InferenceSession):
        self.session = session
        self.binding = session.io_binding()
        self.inputs = {item.name for item in session.get_inputs()}
        self.outputs = [item.name for item in session.get_outputs()]
        self._kept: dict[str, Any] = {}  # the binding does not own what it points to

    def bind_inputs(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Bind those arrays that the graph reads."""
        for name in self.inputs.intersection(arrays):
            value = shared(arrays[name])
            self._kept[name] = (arrays[name], value)
            self.binding.bind_ortvalue_input(name, value)

    def bind_outputs(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Let the graph write these outputs into arrays of ours."""
        for name in self.outputs:
            if name in arrays:
                value = shared(arrays[name])
                self._kept[f"out:{name}"] = (arrays[name], value)
                self.binding.bind_ortvalue_output(name, value)

    def bind_values(self, values: Mapping[str, Any]) -> None:
        """Bind OrtValues that another run made."""
        for name in self.inputs.intersection(values):
            self._kept[name] = (None, values[name])
            self.binding.bind_ortvalue_input(name, values[name])

    def run_holding(self) -> dict[str, Any]:
        """Run once, every output as an OrtValue of onnxruntime's own."""
        feeds = {name: self._kept[name][1] for name in self.inputs}
        found = self.session.run_with_ort_values(self.outputs, feeds)
        return dict(zip(self.outputs, found, strict=True))

    def release(self, arrays: Iterable[str]) -> None:
        """Let go of bound arrays; each must be bound anew before the next run."""
        for name in arrays:
            self._kept.pop(name, None)

    def run(self) -> None:
        """Run once."""
        self.session.run_with_iobinding(self.binding)
