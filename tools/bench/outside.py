"""Watching a process tree from outside, as somebody who does not trust it would."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeladder.budget import kernel_marks, meter  # noqa: E402


class TreeSampler(threading.Thread):
    """Samples a tree's proportional memory every 5 ms and the kernel's mark of each process.

    The tree itself is looked up ten times a second: that takes longer than measuring it.
    """

    def __init__(self, pid: int, interval_seconds: float = 0.005):
        super().__init__(daemon=True)
        self.pid, self.interval_seconds = pid, interval_seconds
        self.peak_bytes = 0
        self.samples = 0
        self.marks: dict[int, int] = {}  # pid -> the kernel's high-water mark
        self._going = True

    def run(self) -> None:
        """Sample until stopped."""
        tree = meter.TreeMeter(self.pid)
        while self._going:
            usage = tree.read()
            self.peak_bytes = max(self.peak_bytes, usage.bytes)
            self.samples += 1
            for pid in usage.processes:
                self.marks[pid] = max(self.marks.get(pid, 0), kernel_marks.high_water(pid))
            time.sleep(self.interval_seconds)

    def stop(self) -> int:
        """End sampling; the highest sample."""
        self._going = False
        self.join()
        return self.peak_bytes
