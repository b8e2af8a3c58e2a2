"""The host wing: models become bundles here, with torch, open_clip and onnx."""

from __future__ import annotations

import logging


def _no_compiler_wanted(record: logging.LogRecord) -> bool:
    """Drop torch's word, at import, on a CUDA toolkit without a GPU: nothing here compiles CUDA."""
    return not str(record.msg).startswith("No CUDA runtime is found")


logging.getLogger("torch.utils.cpp_extension").addFilter(_no_compiler_wanted)
