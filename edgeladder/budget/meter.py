"""How much memory a process tree uses now, as psutil tells it.

Resident sizes count pages shared between processes once per process; proportional sizes (PSS)
split them. PSS makes the kernel walk the page tables, so it is read only when the cheap sum comes
near a line that matters. Swap counts as memory (zram is memory), and so does what a Jetson's GPU
took, which no process's resident size shows (`kernel_marks`).

psutil costs the supervisor 2.5 MB, which are in its baseline; workers do not load this file.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import psutil

from edgeladder.budget import kernel_marks

_WALK_SECONDS = 0.1  # between two looks for new processes, or so many times what one takes:
_WALK_SHARE = 20  # psutil reads every process of the machine for it, 2.6 ms where there are 84


@dataclass(frozen=True)
class Usage:
    """A process tree at one moment."""

    bytes: int  # PSS where it was read, else RSS; swap and GPU included
    exact: bool  # whether PSS was read
    processes: dict[int, int] = field(default_factory=dict)  # pid -> bytes
    swap_bytes: int = 0
    gpu_bytes: int = 0
    resident_bytes: int = 0  # the cheap sum, shared pages counted once per process


class TreeMeter:
    """Measures one process tree again and again; the tree itself is looked up now and then."""

    def __init__(self, pid: int, *, gpu_before: int | None = None):
        """Nothing is measured yet.

        Args:
            pid: root of the tree.
            gpu_before: GPU bytes in use before the tree started, which are not its own; None where
                there are none to ask for. The number is the machine's: a process has none.
        """
        self._pid = pid
        self._gpu_before = gpu_before
        self._processes: list[psutil.Process] = []
        self._swapped: dict[int, int] = {}
        self._walk_at = 0.0  # of a monotonic clock
        self.walk_seconds = 0.0  # what the last measurement spent on the tree alone

    def read(self, *, pss_above: int | None = 0) -> Usage:
        """Memory of the process and its descendants; a process that is gone counts nothing.

        Args:
            pss_above: read PSS if the resident sum exceeds this many bytes; None never does.
        """
        self._walk()
        sizes: dict[int, int] = {}
        for process in self._processes:
            try:
                sizes[process.pid] = process.memory_info().rss
            except psutil.Error:
                continue
        graphics = 0
        if self._gpu_before is not None:
            graphics = max(0, (kernel_marks.gpu_bytes() or 0) - self._gpu_before)
        swap = sum(self._swapped.get(pid, 0) for pid in sizes)
        total = sum(sizes.values()) + swap + graphics
        if pss_above is None or total <= pss_above:
            return Usage(total, False, sizes, swap, graphics, total)
        for process in self._processes:
            full = _full(process)
            if full is not None and process.pid in sizes:
                sizes[process.pid] = full.pss
                self._swapped[process.pid] = full.swap
        swap = sum(self._swapped.get(pid, 0) for pid in sizes)
        return Usage(sum(sizes.values()) + swap + graphics, True, sizes, swap, graphics, total)

    def _walk(self) -> None:
        began = time.monotonic()
        self.walk_seconds = 0.0
        if self._processes and began < self._walk_at:
            return
        self._processes = _tree(self._pid)
        if psutil.swap_memory().used:  # else nobody has swapped a page
            found = ((process.pid, _full(process)) for process in self._processes)
            self._swapped = {pid: full.swap for pid, full in found if full is not None}
        now = time.monotonic()
        self.walk_seconds = now - began
        self._walk_at = now + max(_WALK_SECONDS, _WALK_SHARE * self.walk_seconds)


def _tree(pid: int) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _full(process: psutil.Process) -> Any:
    """psutil's record with uss, pss and swap; None where the kernel does not tell."""
    try:
        return process.memory_full_info()
    except psutil.Error:
        return None


def tree(pid: int) -> list[int]:
    """The process and all its descendants."""
    return [process.pid for process in _tree(pid)]


def measure(pid: int, *, pss_above: int | None = 0, gpu_before: int | None = None) -> Usage:
    """Memory of a process and its descendants, once; see `TreeMeter`."""
    return TreeMeter(pid, gpu_before=gpu_before).read(pss_above=pss_above)


def resident(pid: int) -> int:
    """Resident bytes of one process, swap left out; 0 when it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def private(pid: int) -> int:
    """Bytes only this process holds (USS) and its swap, which end with it; 0 when it is gone."""
    try:
        full = psutil.Process(pid).memory_full_info()
    except psutil.AccessDenied:
        return resident(pid)
    except psutil.Error:
        return 0
    return int(full.uss + full.swap)


def file_bytes(pid: int) -> int:
    """Resident pages of mapped files: libraries and mapped weights."""
    return int(psutil.Process(pid).memory_info().shared)


def data_bytes(pid: int) -> int:
    """Private writable address space, which is what RLIMIT_DATA bounds."""
    return int(psutil.Process(pid).memory_info().data)


def available_bytes() -> int:
    """Memory the machine could give without swapping."""
    return int(psutil.virtual_memory().available)


def total_bytes() -> int:
    """Physical memory of the machine."""
    return int(psutil.virtual_memory().total)
