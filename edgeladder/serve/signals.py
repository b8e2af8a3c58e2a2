"""SIGINT and SIGTERM of a service, noted and handed on instead of thrown."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from edgeladder.core.errors import Interrupted


class Signals:
    """While entered, signals are kept in `came`, and `then` is told of each."""

    def __init__(self) -> None:
        self.came: list[int] = []
        self.then: Callable[[int], None] = lambda number: None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def raise_interrupt(self) -> None:
        """After a Ctrl-C.

        Raises:
            Interrupted: it came.
        """
        if signal.SIGINT in self.came:
            raise Interrupted("stopped", remedy="run the same command again")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.came.append(number)
        self.then(number)
