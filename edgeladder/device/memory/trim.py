"""Give free heap pages back to the kernel."""

from __future__ import annotations

import gc


def trim_heap(*, collect: bool = True) -> bool:
    """Collect garbage and call glibc's `malloc_trim(0)`; False where the C library has none."""
    if collect:
        gc.collect()
    import ctypes  # only under pressure: it costs half a megabyte

    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # musl, macOS
        return False
    trim(0)
    return True
