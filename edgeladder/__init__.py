"""EdgeLadder: adapt a frozen CLIP to a place, on the device, inside a memory budget.

    run = edgeladder.train("pictures", bundle="nano", budget="160MB", shots=16)
    print(run.accuracy)
    for found in run.predict(["a.jpg", "b.jpg"]):
        print(found.path, found.labels)

Nothing is loaded before it is asked for (PEP 562): importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from edgeladder.api import export as export
    from edgeladder.api import load as load
    from edgeladder.api import plan as plan
    from edgeladder.api import precompute as precompute
    from edgeladder.api import resume as resume
    from edgeladder.api import train as train
    from edgeladder.core.errors import BudgetError as BudgetError
    from edgeladder.core.errors import ConfigError as ConfigError
    from edgeladder.core.errors import DataError as DataError
    from edgeladder.core.errors import EdgeLadderError as EdgeLadderError
    from edgeladder.core.errors import IntegrityError as IntegrityError
    from edgeladder.core.errors import Interrupted as Interrupted
    from edgeladder.core.errors import StorageError as StorageError
    from edgeladder.core.inference import Prediction as Prediction
    from edgeladder.core.shipped import DEMO_PICTURES as DEMO_PICTURES
    from edgeladder.run import Run as Run

_LAZY = {  # name -> module that has it
    **dict.fromkeys(("export", "load", "plan", "precompute", "resume", "train"), "api"),
    **dict.fromkeys(
        (
            "BudgetError",
            "ConfigError",
            "DataError",
            "EdgeLadderError",
            "IntegrityError",
            "Interrupted",
            "StorageError",
        ),
        "core.errors",
    ),
    "DEMO_PICTURES": "core.shipped",
    "Prediction": "core.inference",
    "Run": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
