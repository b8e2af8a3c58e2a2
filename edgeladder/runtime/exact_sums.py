"""What a session is told so that int8 products are summed exactly on this processor.

x86 without VNNI multiplies bytes by pairs into 16 bits (vpmaddubsw), where two large products
saturate: a tower would give other numbers there. onnxruntime's `session.x64quantprecision` lets it
turn the weights to unsigned bytes, whose products it sums in 32 bits: slower, and exact. With VNNI
its sums are exact as they are, and the setting would take twice the time (1.32). On ARM its kernels
(NEON, dot product, i8mm) sum in 32 bits always, and the setting says nothing.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

VNNI = frozenset({"avx512_vnni", "avx_vnni"})  # as Linux names what onnxruntime looks for
_X86 = ("x86_64", "amd64", "i686", "i386")
_CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def exact_sums() -> dict[str, str]:
    """Session options by name; none where this processor needs none."""
    if platform.machine().lower() not in _X86:
        return {}
    return {} if VNNI & processor_flags(_CPUINFO) else {"session.x64quantprecision": "1"}


def describe() -> str:
    """How this processor sums int8 products, in a few words for a person."""
    flags = processor_flags(_CPUINFO)
    if platform.machine().lower() in _X86:
        return "no VNNI: exact, by slower sums" if exact_sums() else "VNNI"
    for flag, words in (
        ("i8mm", "i8mm"),
        ("asimddp", "dot product"),
        ("asimd", "NEON, without dot"),
    ):
        if flag in flags:
            return words
    return "unknown to us: exact, and perhaps slow"


def processor_flags(cpuinfo: Path) -> frozenset[str]:
    """What the first processor can, by Linux's names; none where the file tells nothing."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    named = (line for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(named, "").partition(":")[2].split())
