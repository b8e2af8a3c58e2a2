"""What each execution provider is told: memory from the plan, engines kept where they were built.

Names and meanings are onnxruntime's: its pages on the CUDA, TensorRT and OpenVINO execution
providers.
"""

from __future__ import annotations

import json
from pathlib import Path

from edgeladder.core.provider import PROVIDERS

Options = dict[str, str]
_WORKSPACE_SHARE = 4  # of the memory that TensorRT may build an engine in
# weights are widened and multiplied as the graph says; OpenVINO would quantise what they are
# multiplied with as well: 5e-3 off on nano's embeddings
_OPENVINO_EXACT = {"CPU": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}}


def provider_options(
    name: str, *, threads: int, folder: Path, memory_bytes: int | None
) -> list[tuple[str, Options]]:
    """Providers by onnxruntime's names in the order they are asked, without the CPU's.

    Args:
        name: of the provider.
        threads: of a provider that runs on the CPU's cores.
        folder: for compiled engines, which the next session opens instead of building them.
        memory_bytes: that an arena on a GPU may take; None: no limit.
    """
    registered = PROVIDERS[name].registered
    if name == "cuda":
        return [(registered, _cuda(memory_bytes))]
    if name == "tensorrt":  # what TensorRT has no layer for, CUDA runs
        cuda = (PROVIDERS["cuda"].registered, _cuda(memory_bytes))
        return [(registered, _tensorrt(folder, memory_bytes)), cuda]
    on_gpu = name == "openvino-gpu"
    options = {
        "device_type": "GPU" if on_gpu else "CPU",
        "precision": "FP16" if on_gpu else "FP32",
        "load_config": json.dumps(_OPENVINO_EXACT),
    }
    if on_gpu:
        options["cache_dir"] = str(folder)  # on a CPU compiling takes no longer than reading it
    else:
        options["num_of_threads"] = str(threads)
    return [(registered, options)]


def _cuda(memory_bytes: int | None) -> Options:
    options = {
        # the arena grows by what is asked for and not by doubling: on a Jetson it is the CPU's RAM
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",  # an exhaustive search takes workspaces of its own
        "use_tf32": "1",
    }
    if memory_bytes:
        options["gpu_mem_limit"] = str(memory_bytes)
    return options


def _tensorrt(folder: Path, memory_bytes: int | None) -> Options:
    options = {
        "trt_fp16_enable": "1",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }
    if memory_bytes:
        options["trt_max_workspace_size"] = str(memory_bytes // _WORKSPACE_SHARE)
    return options
