"""All that is fuzzed, by name."""

from __future__ import annotations

import importlib
import importlib.util

from tools.fuzz import data_targets, file_targets, fleet_targets
from tools.fuzz.targets import Target


def all_targets() -> dict[str, Target]:
    """Every target by name; those of the HTTP service where its extra is installed."""
    found = [*file_targets.TARGETS, *data_targets.TARGETS, *fleet_targets.TARGETS]
    if all(importlib.util.find_spec(name) for name in ("starlette", "python_multipart", "anyio")):
        found += importlib.import_module("tools.fuzz.serve_targets").TARGETS
    return {target.name: target for target in found}
