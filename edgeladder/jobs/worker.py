"""Entry point of the worker processes: `python -m edgeladder.jobs.worker PHASE SUPERVISOR`.

The request is the first line of stdin, orders are the lines after it; events leave on stdout as
JSON lines. Nothing heavy is imported before the phase is known.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from edgeladder.budget import kernel_marks
from edgeladder.core.errors import EdgeLadderError, Interrupted
from edgeladder.core.events import Done, Failed, HighWater, OutOfMemory
from edgeladder.core.failures import known_failure
from edgeladder.core.orders import Outcome, read_order
from edgeladder.core.records import to_json
from edgeladder.jobs import orphan
from edgeladder.jobs.control import RESTART_CODE, Control

Phase = Callable[[Any, Control], tuple[Outcome, Any]]
# what allocators say: numpy and Python raise MemoryError, onnxruntime one of these texts
_OUT_OF_MEMORY = ("failed to allocate memory", "bad_alloc", "bad allocation", "cannot allocate")
_PHASES = {
    "baseline": "edgeladder.jobs.machine_baseline:measure",
    "plan": "edgeladder.jobs.plan_phase:prepare",
    "provider": "edgeladder.jobs.provider_phase:tried",
    "precompute": "edgeladder.jobs.precompute_phase:fill",
    "pseudo_label": "edgeladder.jobs.pseudo_label_phase:label",
    "train": "edgeladder.jobs.train_phase:fit",
    "evaluate": "edgeladder.jobs.evaluate_phase:score",
    "predict": "edgeladder.jobs.predict_phase:predict",
    "evaluate_pictures": "edgeladder.jobs.evaluate_pictures_phase:evaluate",
    "deploy": "edgeladder.jobs.deploy_phase:deploy",
    "judge": "edgeladder.jobs.judge_phase:judge",
    "serve": "edgeladder.jobs.serve_phase:serve",
    "check": "edgeladder.jobs.check_phase:check",
    "suggest": "edgeladder.jobs.suggest_phase:suggest",
}
# these save what they have when they are told to stop, their supervisor's end included
_NOTHING_TO_SAVE = _PHASES.keys() - {"train", "precompute"}


def _phase(name: str) -> Phase:
    """The function of a phase; `module:function` is one of your own."""
    module, separator, function = _PHASES.get(name, name).partition(":")
    if not separator:
        raise EdgeLadderError(f"unknown phase {name!r}", where="worker")
    gc.disable()  # what is imported stays: looking through it for garbage costs 30 ms
    phase: Phase = getattr(importlib.import_module(module), function)
    gc.freeze()
    gc.enable()
    return phase


def main() -> int:
    """Run one phase; the exit code the supervisor reads."""
    events_out = os.dup(1)
    os.dup2(2, 1)  # a library that prints must not break the events' lines
    orphan.end_with_parent(int(sys.argv[2]))
    name, line = sys.argv[1], _first_line(0)
    control = Control(orders_in=os.dup(0), events_out=events_out)
    code = 0
    try:
        run = _phase(name)
        if name not in _NOTHING_TO_SAVE:
            orphan.leave_time_to_save()
        outcome, result = run(read_order(name, json.loads(line)), control)
        if outcome == "done":
            print(f"loaded: {_loaded()}", file=sys.stderr)
            control.tell(Done(result=to_json(result)))
        else:
            code = {"restart": RESTART_CODE, "stop": Interrupted.exit_code}[outcome]
    except Interrupted as error:
        code = error.exit_code
    except Exception as error:
        known = known_failure(error)
        code = EdgeLadderError.exit_code if known is None else known.exit_code
        control.tell(_described(error, name))
    control.tell(HighWater(bytes=kernel_marks.high_water(os.getpid())))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # onnxruntime's thread pools need no goodbye, and teardown only costs memory


def _loaded() -> str:
    """Versions of what this phase used, for the log; nothing is imported for it."""
    names = ("numpy", "onnxruntime", "PIL", "tokenizers", "pydantic")
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in names}
    return ", ".join(f"{name} {version}" for name, version in found.items() if version) or "-"


def _described(error: Exception, phase: str) -> Failed:
    """An error as the supervisor is told of it; what nobody expected goes to the log in full."""
    if _is_short_of_memory(error):
        return Failed(type=OutOfMemory.__name__, message=str(error)[:500] or "out of memory")
    known = known_failure(error)
    if known is not None:
        return Failed.of(known)
    import traceback

    traceback.print_exc()
    return Failed(
        type="EdgeLadderError",
        message=f"{type(error).__name__}: {str(error)[:500]}",
        where=f"{phase} worker",
        remedy="see worker.log in the run's folder",
    )


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
