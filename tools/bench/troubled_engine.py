"""The stock engine with a leak and a balloon, for the stress test: `--engine troubled_engine:open`.

EDGELADDER_LEAK bytes are lost every step; a child of the worker swells to EDGELADDER_BALLOON
bytes and shrinks again, over and over.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np

from edgeladder.runtime.engine.protocol import StepPlan, StepResult
from edgeladder.runtime.engine.stock import StockEngine

_BALLOON = """
import os, sys, time
size, parent = int(sys.argv[1]), int(sys.argv[2])
while os.getppid() == parent:
    held = bytearray(b"x") * size
    time.sleep(0.15)
    del held
    time.sleep(0.35)
"""


class TroubledEngine(StockEngine):
    """Trains as the stock engine does, and wastes memory meanwhile."""

    def __init__(self, bundle: Any, plan: StepPlan, train: Any, loss: Any):
        super().__init__(bundle, plan, train, loss)
        self._leak_bytes = int(os.environ.get("EDGELADDER_LEAK", "0"))
        self._leaked: list[np.ndarray] = []
        balloon = os.environ.get("EDGELADDER_BALLOON", "0")
        if int(balloon):
            arguments = [sys.executable, "-S", "-c", _BALLOON, balloon, str(os.getpid())]
            self._balloon = subprocess.Popen(arguments)

    def step(self, inputs: Any, learning_rate: float) -> StepResult:
        """One step, and a little less memory."""
        if self._leak_bytes:
            self._leaked.append(np.ones(self._leak_bytes, np.uint8))
        return super().step(inputs, learning_rate)


def open(bundle: Any, plan: StepPlan, train: Any, loss: Any) -> TroubledEngine:  # noqa: A001
    """The factory `--engine` names."""
    return TroubledEngine(bundle, plan, train, loss)
