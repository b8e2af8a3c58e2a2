"""Give pages back to the kernel: free heap, and library code that only the start needed."""

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


# mallopt's parameters in glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_heap(bytes_kept: int) -> bool:
    """Let malloc keep so many freed bytes; False where the C library cannot be told.

    For a loop that takes and frees the same buffers over and over: a fresh page costs the kernel
    more than most operators take to fill it.

    Args:
        bytes_kept: at the heap's end. Buffers of up to so many come from the heap, too.
    """
    import ctypes

    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl, macOS
        return False
    options = (_TRIM_THRESHOLD, _MMAP_THRESHOLD)
    return all(set_option(option, bytes_kept) for option in options)


_DONTNEED = 4  # MADV_DONTNEED, the same on every Linux


def drop_clean_pages() -> int:
    """Let go of resident file pages that can be read again: code and constants of libraries.

    Importing numpy and onnxruntime and opening sessions touches some 45 MB of their files, of
    which training needs 15 again. Only mappings that are not writable and hold no page of our own
    (relocated constants are such pages) are dropped; what is needed again comes back from the
    page cache at its next use.

    Returns:
        Bytes of address space dropped; 0 where the kernel does not tell (no Linux).
    """
    ranges: list[tuple[int, int]] = []
    candidate: tuple[int, int] | None = None
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                words = line.split()
                if not words[0].endswith(":"):  # a mapping: range, permissions, .., path
                    clean = len(words) > 5 and words[5].startswith("/") and "w" not in words[1]
                    start, _, stop = words[0].partition("-")
                    candidate = (int(start, 16), int(stop, 16)) if clean else None
                elif words[0] == "Anonymous:" and candidate is not None:
                    if words[1] == "0":
                        ranges.append(candidate)
                    candidate = None
    except OSError:
        return 0
    import ctypes

    dropped = 0
    advise = ctypes.CDLL(None).madvise
    for first, last in ranges:
        if advise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _DONTNEED) == 0:
            dropped += last - first
    return dropped


def release_startup_memory() -> None:
    """After the start: free heap and start-up code go before the work that counts begins."""
    trim_heap()
    drop_clean_pages()
