"""Ctrl-C and a request to end, noticed between two looks at a worker rather than thrown."""

from __future__ import annotations

import contextlib
import signal
from typing import Any


class Interrupts:
    """While entered, SIGINT and SIGTERM only set `came`."""

    def __init__(self) -> None:
        self.came = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM):
            # only the main thread may set handlers; elsewhere signals are the caller's affair
            with contextlib.suppress(ValueError):
                self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        self.came = True
