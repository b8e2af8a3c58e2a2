"""All that is fuzzed, by name."""

from __future__ import annotations

from tools.fuzz import data_targets, file_targets, fleet_targets
from tools.fuzz.targets import Target


def all_targets() -> dict[str, Target]:
    """Every target by name."""
    found = [*file_targets.TARGETS, *data_targets.TARGETS, *fleet_targets.TARGETS]
    return {target.name: target for target in found}
