"""Numbers for Prometheus, in its text format 0.0.4."""

from __future__ import annotations

import time
from collections import Counter

from edgeladder.jobs.service import ServiceUse

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24)  # seconds


class Metrics:
    """Counts since the start; their number does not grow."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._requests: Counter[int] = Counter()  # by status
        self._within: Counter[float] = Counter()  # answers by the smallest bucket they fit
        self._seconds = 0.0
        self._answers = 0

    def count_request(self, status: int) -> None:
        """A request was answered."""
        self._requests[status] += 1

    def count_answer(self, seconds: float) -> None:
        """A picture was answered, so many seconds after it was there whole."""
        self._answers += 1
        self._seconds += seconds
        self._within[next((edge for edge in _BUCKETS if seconds <= edge), float("inf"))] += 1

    def totals(self) -> dict[str, int]:
        """Requests by status."""
        return {str(status): count for status, count in sorted(self._requests.items())}

    def text(self, use: ServiceUse) -> str:
        """Everything, a sample a line."""
        lines: list[str] = []

        def family(name: str, kind: str, about: str, samples: dict[str, float]) -> None:
            lines.append(f"# HELP edgeladder_{name} {about}")
            lines.append(f"# TYPE edgeladder_{name} {kind}")
            lines.extend(f"edgeladder_{name}{label} {value:g}" for label, value in samples.items())

        by_status = {f'{{status="{s}"}}': float(n) for s, n in sorted(self._requests.items())}
        family("requests_total", "counter", "Requests by status.", by_status)
        counted, histogram = 0, {}
        for edge in (*_BUCKETS, float("inf")):
            counted += self._within[edge]
            name = "+Inf" if edge == float("inf") else f"{edge:g}"
            histogram[f'_bucket{{le="{name}"}}'] = float(counted)
        histogram |= {"_sum": self._seconds, "_count": float(self._answers)}
        family("answer_seconds", "histogram", "From a whole picture to its answer.", histogram)
        family("waiting_pictures", "gauge", "Pictures waiting or looked at.", {"": use.waiting})
        family("worker_restarts_total", "counter", "Workers that ended.", {"": use.restarts})
        family(
            "worker_ready", "gauge", "Whether pictures are answered.", {"": use.state == "ready"}
        )
        family("memory_bytes", "gauge", "Of the process tree.", {"": use.used_bytes})
        family("budget_bytes", "gauge", "What it may take.", {"": use.budget_bytes})
        uptime = time.monotonic() - self._began
        family("uptime_seconds", "gauge", "Since the start.", {"": uptime})
        return "\n".join(lines) + "\n"
