"""Entry point of the worker processes: `python -m edgeladder.jobs.worker PHASE`.

The request is the first line of stdin, orders are the lines after it; events leave on stdout as
JSON lines. Nothing heavy is imported before the phase is known.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from edgeladder.budget import kernel_marks
from edgeladder.core.errors import BudgetError, EdgeLadderError, Interrupted
from edgeladder.jobs.control import RESTART_CODE, Control

Phase = Callable[[dict[str, Any], Control], tuple[str, dict[str, Any]]]
# what allocators say: numpy and Python raise MemoryError, onnxruntime one of these texts
_OUT_OF_MEMORY = ("failed to allocate memory", "bad_alloc", "bad allocation", "cannot allocate")


def _phase(name: str) -> Phase:
    if name == "baseline":
        return _baseline
    if name == "plan":
        from edgeladder.jobs.plan_phase import prepare

        return prepare
    if name == "precompute":
        from edgeladder.jobs.precompute_phase import fill

        return fill
    if name == "train":
        from edgeladder.jobs.train_phase import fit

        return fit
    if name == "evaluate":
        from edgeladder.jobs.evaluate_phase import score

        return score
    module, separator, function = name.partition(":")
    if not separator:
        raise EdgeLadderError(f"unknown phase {name!r}", where="worker")
    phase: Phase = getattr(importlib.import_module(module), function)  # a phase of your own
    return phase


def _baseline(values: dict[str, Any], control: Control) -> tuple[str, dict[str, Any]]:
    """Measured in a worker of its own: inside the plan worker the measuring would add to it."""
    from edgeladder.jobs.machine_baseline import machine_baseline

    return "done", machine_baseline().to_json()


def main() -> int:
    """Run one phase; the exit code the supervisor reads."""
    events_out = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not break the events' lines
    values = json.loads(_first_line(0))
    control = Control(orders_in=os.dup(0), events_out=events_out)
    code = 0
    try:
        outcome, result = _phase(sys.argv[1])(values, control)
        if outcome == "done":
            control.tell("done", result=result)
        else:
            code = {"restart": RESTART_CODE, "stop": Interrupted.exit_code}[outcome]
    except Interrupted as error:
        code = error.exit_code
    except EdgeLadderError as error:
        code = error.exit_code
        described: dict[str, Any] = error.to_dict()
        if isinstance(error, BudgetError):
            described["minimum_budget_bytes"] = error.minimum_budget_bytes
        if _is_short_of_memory(error):
            described["type"] = "OutOfMemory"
        control.tell("error", error=described)
    except Exception as error:
        code = 1
        described = {
            "type": "EdgeLadderError",
            "message": f"{type(error).__name__}: {str(error)[:500]}",
            "where": f"{sys.argv[1]} worker",
            "remedy": "see worker.log in the run's folder",
        }
        if _is_short_of_memory(error):
            described = {"type": "OutOfMemory", "message": str(error)[:300] or "out of memory"}
        else:
            import traceback

            traceback.print_exc()
        control.tell("error", error=described)
    control.tell("high_water", bytes=kernel_marks.high_water(os.getpid()))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # onnxruntime's thread pools need no goodbye, and teardown only costs memory


def _is_short_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(word in text for word in _OUT_OF_MEMORY)


def _first_line(descriptor: int) -> bytes:
    """One line, byte for byte, so that nothing of the orders after it is swallowed."""
    line = bytearray()
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        line += byte
    return bytes(line)


if __name__ == "__main__":
    main()
