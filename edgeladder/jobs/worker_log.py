"""worker.log of a run: what each phase began with, what its worker said, and how it ended.

Bounded: what was written before lies in worker.log.1 once the file is large, and no worker fills a
card with what it says. Standard library only: the supervisor counts inside the budget.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgeladder import __version__
from edgeladder.core import disk
from edgeladder.core.job import PhaseOrder
from edgeladder.core.orders import FreeOrder

if TYPE_CHECKING:
    from edgeladder.budget.limits import MemoryLimit
    from edgeladder.core.orders import Order

LARGEST_BYTES = 512_000  # of worker.log when a phase begins, and of what one worker says


class WorkerLog:
    """The log during one life of a phase's worker; without a path, nothing is kept."""

    def __init__(self, path: Path | None, phase: str):
        self._phase = phase
        self._began = time.monotonic()
        self._left = LARGEST_BYTES
        self._line_ended = True
        self._descriptor: int | None = None
        if path is not None:
            if path.is_file() and path.stat().st_size > LARGEST_BYTES:
                disk.replace(path, path.with_name(path.name + ".1"))
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def begins(self, order: Order, limit: MemoryLimit) -> None:
        """Versions, limit and sizes of the phase."""
        python = ".".join(str(part) for part in sys.version_info[:3])
        held = f"limit {limit.layer}"
        if limit.limit_bytes:
            held += f" {limit.limit_bytes / 1e6:.0f} MB"
        sizes = order.sizes.sizes() if isinstance(order, (PhaseOrder, FreeOrder)) else {}
        told = [f"{name} {value}" for name, value in sizes.items() if value is not None]
        words = [f"edgeladder {__version__}", f"python {python}", held, *told]
        self.line(f"begins, {', '.join(words)}")

    def ends(self, how: str, peak_bytes: int, step: int) -> None:
        """The last line of a life; closes the file."""
        seconds = time.monotonic() - self._began
        self.line(f"{how}; {seconds:.1f} s, peak {peak_bytes / 1e6:.0f} MB, step {step}")
        self.close()

    def line(self, text: str) -> None:
        """A line of our own, stamped with the time (UTC)."""
        start = "" if self._line_ended else "\n"
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        words = f"{self._phase}: {' '.join(text.split())}"
        self._write(f"{start}{stamp} {words}\n".encode("utf-8", "replace"))

    def said(self, data: bytes) -> None:
        """What the worker or a library in it wrote, as it is, up to `LARGEST_BYTES`."""
        if len(data) > self._left >= 0:
            self._write(data[: self._left])
            self._left = -1
            self.line("more was said; it is left out")
        elif self._left >= 0:
            self._left -= len(data)
            self._write(data)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, data: bytes) -> None:
        if self._descriptor is not None and data:
            os.write(self._descriptor, data)
            self._line_ended = data.endswith(b"\n")
