"""onnxruntime sessions set up for little memory, all of them here, and runs on our own buffers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.provider import PROVIDERS
from edgeladder.runtime.accelerator_options import provider_options
from edgeladder.runtime.exact_sums import exact_sums

Arena = Literal["own", "shared"]
"""Where activations' memory is kept from one run to the next: by the session, until it closes, or
in one heap of all sessions that ask for it."""

CPU_PROVIDER = "CPUExecutionProvider"
# int8 weights are multiplied as the graph says: dequantised, in float32. onnxruntime 1.20 and later
# would quantise the activations too, wherever a product's weights are dequantised: no faster here,
# 6e-3 off on nano's embeddings, and not the same on every processor
IN_FLOAT = {"session.qdq_matmulnbits_accuracy_level": "1"}
# constants are computed at loading; without it onnxruntime keeps the nodes that dequantise them
WIDENED = {"session.disable_quant_qdq": "1"}
# what onnxruntime fuses is not always faster: on a block of ViT-B/16 BiasGelu takes 1.4 ms where
# Add and Gelu take 0.9, SkipLayerNormalization 1.2 where Add and LayerNormalization take 0.3 (1.32
# on one thread; 1.23 and 1.19 take as long either way)
_SLOWER_FUSED = ("BiasGeluFusion", "SkipLayerNormFusion")
_ERRORS_ONLY = 3

_threads_set: list[int] = []
_shared_arena: list[bool] = []


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


def share_arena() -> bool:
    """One heap of activations for all sessions that ask for it; False if it cannot be had.

    Without a heap every run asks the kernel for its pages again, a third of the time where malloc
    gives large buffers back at once; with a heap in each of a tower's open segments, each keeps a
    copy of the activations.
    """
    if not _shared_arena:
        information = onnxruntime.OrtMemoryInfo(
            "Cpu",
            onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
            0,
            onnxruntime.OrtMemType.DEFAULT,
        )
        try:
            onnxruntime.create_and_register_allocator(information, None)
        except Exception:  # onnxruntime's own class: one is registered already, not by us
            return False
        _shared_arena.append(True)
    return True


def open_session(
    path: Path, threads: int, *, as_written: bool = False, arena: bool = True
) -> onnxruntime.InferenceSession:
    """A ladder's session: it plans no memory ahead and runs nodes in the order they were written.

    The written order lets activations die early; common-subexpression elimination would undo
    recomputation, and fusing a sum with the layer norm after it forgets the deviation that the
    backward pass reads.

    Args:
        as_written: no fusion at all. Our own graphs are fused already, and a node that
            onnxruntime fuses is run last: on the reference ladder that keeps 46 MB of activations
            alive instead of 16 and saves no time.
        arena: let onnxruntime keep a heap of its own, which does not shrink.
    """
    options = _options("own" if arena else None)
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    _use_threads(options, threads)
    return _open(path, options, ["CommonSubexpressionElimination", "SkipLayerNormFusion"])


def open_segment(
    path: Path,
    threads: int,
    *,
    spin: bool = False,
    arena: Arena | None = None,
    widen: bool = False,
) -> onnxruntime.InferenceSession:
    """A backbone segment's session.

    Args:
        spin: waiting threads spin.
        arena: None: activations' memory is given back after each run.
        widen: make int8 weights float32 now, not in every run.

    Raises:
        IntegrityError: onnxruntime cannot load the file.
    """
    options = _options(arena)
    # with pools of their own, threads of a segment that is done spin on the cores that the next one
    # needs: a whole tower took up to five times as long
    joined = _use_threads(options, threads, share=arena == "shared")
    if arena == "shared" and not joined:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if widen:
        for key, value in WIDENED.items():
            options.add_session_config_entry(key, value)
    try:
        return _open(path, options, _SLOWER_FUSED)
    except Exception as error:  # onnxruntime raises its own classes, none of them public
        raise IntegrityError(
            f"onnxruntime cannot load a backbone segment: {error}",
            where=str(path),
            remedy="copy or export the bundle again",
        ) from error


def open_accelerated(
    path: Path,
    provider: str,
    *,
    threads: int,
    sizes: Mapping[str, int],
    folder: Path,
    memory_bytes: int | None,
) -> onnxruntime.InferenceSession:
    """A tower's session on a provider that is not the CPU's; nodes it has no kernel for stay there.

    Args:
        provider: by our name (`core.provider`).
        threads: of what runs on the CPU's cores.
        sizes: of dimensions that the file only names, so that engines are built for them.
        folder: where engines are kept.
        memory_bytes: that it may take on a GPU; None: no limit.

    Raises:
        ConfigError: it is not in this onnxruntime, or cannot run here or cannot run this tower.
    """
    options = _options(None)
    _use_threads(options, threads, share=False)
    for name, size in sizes.items():
        options.add_free_dimension_override_by_name(name, size)
    registered = PROVIDERS[provider].registered
    asked = provider_options(provider, threads=threads, folder=folder, memory_bytes=memory_bytes)
    remedy = f"`edgeladder doctor` says what {provider} needs; --provider cpu does without"
    try:
        session = _open(path, options, providers=asked)
    except Exception as error:  # onnxruntime raises its own classes, none of them public
        raise ConfigError(
            f"{provider} cannot run this tower here: {_first_line(error)}",
            where=str(path),
            remedy=remedy,
        ) from error
    if registered not in session.get_providers():  # what cannot start is left out without an error
        raise ConfigError(
            f"{provider} does not start on this machine", where="onnxruntime", remedy=remedy
        )
    return session


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def open_plain(model: Path | bytes, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session for anything else, with no heap that outlives a run.

    Args:
        model: a file, or a serialized model.
        threads: 0: one per core.
    """
    options = _options(None)
    _use_threads(options, threads, share=False)
    return _open(model, options)


def _options(arena: Arena | None) -> onnxruntime.SessionOptions:
    """What every session is opened with."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # a plan of all activations at once, never returned: 100 MB of peak on the reference ladder
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = arena is not None
    if arena == "shared":
        options.add_session_config_entry("session.use_env_allocators", "1")
    for key, value in (IN_FLOAT | exact_sums()).items():
        options.add_session_config_entry(key, value)
    return options


def _use_threads(options: onnxruntime.SessionOptions, threads: int, *, share: bool = True) -> bool:
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


def _open(
    model: Path | bytes,
    options: onnxruntime.SessionOptions,
    disabled_optimizers: Sequence[str] = (),
    providers: Sequence[tuple[str, dict[str, str]]] = (),
) -> onnxruntime.InferenceSession:
    """The one place where a session is made.

    Args:
        providers: asked before the CPU's, with their options.

    Raises:
        UnicodeEncodeError: a path that is not UTF-8, which onnxruntime does not take.
    """
    if not isinstance(model, bytes):
        str(model).encode()
    return onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=[*providers, CPU_PROVIDER],
        disabled_optimizers=list(disabled_optimizers),
        enable_fallback=0,  # without it a provider that fails is replaced, and nobody told
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
