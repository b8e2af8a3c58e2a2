"""The line between a worker and its supervisor: orders come in, events go out, a line each.

Orders are taken between steps only, so that a checkpoint never catches a half-made update. When
the supervisor is gone its end of the pipe closes, and the worker stops as if told to; it is given
a moment for that (`orphan`).
"""

from __future__ import annotations

import json
import os
import queue
import threading
from typing import TYPE_CHECKING

from edgeladder.core.events import Event, write_event
from edgeladder.core.inference import Question
from edgeladder.core.records import from_json
from edgeladder.core.trim import trim_heap
from edgeladder.jobs import orphan

if TYPE_CHECKING:
    from edgeladder.core.orders import Outcome

RESTART_CODE = 75  # EX_TEMPFAIL: the worker left a checkpoint and asks to be started again
ORDERS = ("trim", "checkpoint", "halve", "restart", "stop")


class LeaveError(Exception):
    """An order to leave: raised between two parts of the work; what is done is kept."""

    def __init__(self, outcome: Outcome):
        super().__init__()
        self.outcome = outcome


class Control:
    """Orders from the supervisor, and events back to it."""

    def __init__(self, orders_in: int | None = None, events_out: int | None = None):
        """Args: two file descriptors; without them nothing is ever ordered and events are lost."""
        self._orders: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._questions: queue.SimpleQueue[str] = queue.SimpleQueue()  # empty: look at the orders
        self._out = events_out
        self._lock = threading.Lock()
        if orders_in is not None:
            thread = threading.Thread(target=self._read, args=(orders_in,), daemon=True)
            thread.start()

    def _read(self, descriptor: int) -> None:
        with os.fdopen(descriptor, "r", encoding="utf-8") as stream:
            for line in stream:
                order = line.strip()
                if order in ORDERS:
                    self.order(order)
                elif order.startswith("{"):
                    self._questions.put(order)
        self.order("stop")
        orphan.end_soon()

    def order(self, name: str) -> None:
        """Queue an order from inside the process (a signal handler, a test)."""
        self._orders.put(name)
        self._questions.put("")

    def question(self) -> Question | None:
        """Wait for the next question; None: an order came, which `take` has."""
        line = self._questions.get()
        return from_json(Question, json.loads(line), where="a question") if line else None

    def take(self) -> list[str]:
        """All orders since the last call, each once, in the order they came."""
        orders: list[str] = []
        while True:
            try:
                name = self._orders.get_nowait()
            except queue.Empty:
                return orders
            if name not in orders:
                orders.append(name)

    def tell(self, event: Event) -> None:
        """Send one event; a supervisor that is gone is not an error here."""
        if self._out is None:
            return
        data = write_event(event)
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._out, data) :]
            except BrokenPipeError:
                self._out = None


def obey(control: Control) -> None:
    """Do what was ordered since the last time.

    Raises:
        LeaveError: to stop, or to be started again.
    """
    for told in control.take():
        if told == "trim":
            trim_heap()
        elif told in ("stop", "restart"):
            raise LeaveError("stop" if told == "stop" else "restart")
