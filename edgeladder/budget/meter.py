"""How much memory a process tree uses now, and the most it ever used.

On Linux the numbers come straight from /proc, because the supervisor that watches counts inside
the budget and psutil would cost it 3 MB; elsewhere psutil is asked. Resident sizes count pages
shared between processes once per process; proportional sizes (PSS) split them. PSS makes the
kernel walk the page tables, so it is read only when the cheap sum comes near a line that matters.
Swap counts as memory (zram is memory), and so does what a Jetson's GPU took (NvMapMemUsed), which
no process's resident size shows.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_LINUX = sys.platform.startswith("linux")
PROC = "/proc"


@dataclass
class Usage:
    """A process tree at one moment."""

    bytes: int  # PSS where it was read, else RSS; swap and GPU included
    exact: bool  # whether PSS was read
    processes: dict[int, int] = field(default_factory=dict)  # pid -> bytes
    swap_bytes: int = 0
    gpu_bytes: int = 0
    resident_bytes: int = 0  # the cheap sum, shared pages counted once per process


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read()
    except (OSError, ProcessLookupError):
        return ""


def _fields(text: str) -> dict[str, int]:
    """`Name:  123 kB` lines as bytes."""
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            values[name.strip()] = int(words[0]) * 1024
    return values


def children(pid: int) -> list[int]:
    """Direct children of a process, over all its threads."""
    found: list[int] = []
    try:
        threads = os.listdir(f"{PROC}/{pid}/task")
    except OSError:
        return []
    for thread in threads:
        path = f"{PROC}/{pid}/task/{thread}/children"
        text = _read(path)
        if not text and not os.path.exists(path):
            return _children_by_parent(pid)  # kernel without CONFIG_PROC_CHILDREN
        found += [int(word) for word in text.split()]
    return found


def _children_by_parent(pid: int) -> list[int]:
    found = []
    for name in os.listdir(PROC):
        if name.isdigit():
            # after the command name, which may hold spaces and brackets: state, parent
            words = _read(f"{PROC}/{name}/stat").rpartition(")")[2].split()
            if len(words) > 1 and words[1] == str(pid):
                found.append(int(name))
    return found


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    found, queue = [pid], [pid]
    while queue:
        for child in children(queue.pop()):
            if child not in found:
                found.append(child)
                queue.append(child)
    return found


def resident(pid: int) -> int:
    """Resident bytes of one process, swap left out; 0 when it is gone."""
    words = _read(f"{PROC}/{pid}/statm").split()
    return int(words[1]) * _PAGE_BYTES if len(words) > 1 else 0


def proportional(pid: int) -> tuple[int, int] | None:
    """PSS and swapped bytes of one process; None where the kernel does not tell."""
    values = _fields(_read(f"{PROC}/{pid}/smaps_rollup"))
    if "Pss" not in values:
        return None
    return values["Pss"], values.get("SwapPss", values.get("Swap", 0))


def private(pid: int) -> int:
    """Bytes only this process holds (USS), which end with it; RSS where USS is not told."""
    values = _fields(_read(f"{PROC}/{pid}/smaps_rollup"))
    if "Private_Dirty" not in values:
        return resident(pid) if _LINUX else measure(pid).bytes
    return values["Private_Dirty"] + values.get("Private_Clean", 0) + values.get("SwapPss", 0)


def high_water(pid: int) -> int:
    """The kernel's own mark of the most resident bytes this program ever had (VmHWM).

    Not `ru_maxrss`: that one survives exec, so a child of a large parent shows the parent's.
    """
    return _fields(_read(f"{PROC}/{pid}/status")).get("VmHWM", 0)


def file_bytes(pid: int) -> int:
    """Resident pages of mapped files: libraries and mapped weights (RssFile)."""
    return _fields(_read(f"{PROC}/{pid}/status")).get("RssFile", 0)


def data_bytes(pid: int) -> int:
    """Private writable address space (VmData), which is what RLIMIT_DATA bounds."""
    return _fields(_read(f"{PROC}/{pid}/status")).get("VmData", 0)


def gpu_bytes() -> int:
    """Memory a Jetson's GPU took out of RAM; 0 elsewhere."""
    return _fields(_read(f"{PROC}/meminfo")).get("NvMapMemUsed", 0)


def measure(
    pid: int, *, pss_above: int | None = 0, gpu_before: int = 0, gpu: bool = False
) -> Usage:
    """Memory of a process and its descendants.

    Args:
        pid: root of the tree.
        pss_above: read PSS if the resident sum exceeds this many bytes; None never does.
        gpu_before: GPU bytes that were in use before the tree started, which are not its own.
        gpu: whether to ask for GPU bytes (the whole machine's; there is no per-process number).
    """
    if not _LINUX:
        return _measure_with_psutil(pid)
    pids = tree(pid)
    sizes = {one: resident(one) for one in pids}
    graphics = max(0, gpu_bytes() - gpu_before) if gpu else 0
    swap = sum(_fields(_read(f"{PROC}/{one}/status")).get("VmSwap", 0) for one in pids)
    total = sum(sizes.values()) + swap + graphics
    if pss_above is None or total <= pss_above:
        return Usage(total, False, sizes, swap, graphics, total)
    swap = 0
    for one in pids:
        told = proportional(one)
        if told is not None:
            sizes[one] = told[0]
            swap += told[1]
    return Usage(sum(sizes.values()) + swap + graphics, True, sizes, swap, graphics, total)


def _measure_with_psutil(pid: int) -> Usage:
    import psutil

    sizes: dict[int, int] = {}
    try:
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            sizes[process.pid] = process.memory_info().rss
    except psutil.Error:
        pass
    return Usage(sum(sizes.values()), False, sizes)


def available_bytes() -> int:
    """Memory the machine could give without swapping (MemAvailable)."""
    if _LINUX:
        return _fields(_read(f"{PROC}/meminfo")).get("MemAvailable", 0)
    import psutil

    return int(psutil.virtual_memory().available)


def total_bytes() -> int:
    """Physical memory of the machine."""
    if _LINUX:
        return _fields(_read(f"{PROC}/meminfo")).get("MemTotal", 0)
    import psutil

    return int(psutil.virtual_memory().total)


def pressure() -> float:
    """Share of the last 10 s in which all work waited for memory (PSI `full avg10`), in percent."""
    for line in _read(f"{PROC}/pressure/memory").splitlines():
        if line.startswith("full"):
            for word in line.split():
                if word.startswith("avg10="):
                    return float(word[6:])
    return 0.0
