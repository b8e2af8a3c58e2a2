"""What only the kernel tells of memory, and psutil does not: read by hand, on Linux.

Standard library only, because the workers that count ask for their own high-water mark. Elsewhere
than on Linux nothing is told, and every answer is 0.
"""

from __future__ import annotations

PROC = "/proc"
NVMAP = "/sys/kernel/debug/nvmap/iovmm/clients"  # of older Jetson kernels; root's to read
_UNITS = {"B": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read()
    except (OSError, ProcessLookupError):
        return ""


def _kilobytes(path: str, wanted: str) -> int | None:
    """Bytes of a `Name:  123 kB` line; None where there is none."""
    for line in _read(path).splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == wanted and len(words) == 2 and words[0].isdigit():
            return int(words[0]) * 1024
    return None


def high_water(pid: int) -> int:
    """The kernel's own mark of the most resident bytes this program ever had (VmHWM).

    Not `ru_maxrss`: that one survives exec, so a child of a large parent shows the parent's.
    """
    return _kilobytes(f"{PROC}/{pid}/status", "VmHWM") or 0


def gpu_bytes() -> int | None:
    """Memory a Jetson's GPU took out of RAM, which no process's resident size shows.

    None where no GPU takes any: 0 is a Jetson on which nothing runs on the GPU yet.
    """
    used = _kilobytes(f"{PROC}/meminfo", "NvMapMemUsed")
    return _nvmap_total() if used is None else used


def _nvmap_total() -> int | None:
    """The last line of nvmap's own table, `total 140988K`; None where it cannot be read."""
    for line in _read(NVMAP).splitlines():
        words = line.split()
        if len(words) == 2 and words[0] == "total" and words[1][:-1].isdigit():
            return int(words[1][:-1]) * _UNITS.get(words[1][-1], 1)
    return None


def pressure() -> float:
    """Share of the last 10 s in which all work waited for memory (PSI `full avg10`), in percent."""
    for line in _read(f"{PROC}/pressure/memory").splitlines():
        if line.startswith("full"):
            for word in line.split():
                if word.startswith("avg10="):
                    return float(word[6:])
    return 0.0
