"""Which prompts a ladder's graphs are given: the places that condensation kept, as inputs.

Parameters, moments, checkpoints and fleets hold every prompt at its place; a graph gathers the kept
ones before it does anything with them, so that it computes with that many and no more. Graphs of
bundles exported before there were such inputs read the mask instead, and compute with all.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeladder.core.prompt_tensors import PromptTensors

Array = np.ndarray


def kept_places(values: Mapping[str, Array], names: PromptTensors) -> dict[str, Array]:
    """Places (k,) int64 of each rung's kept prompts by the graphs' names of them.

    The first place, which the mask silences, stands in a rung that keeps none.

    Args:
        values: a ladder's buffers, by name; without a mask there is nothing to choose from.
        names: which of them are prompts.
    """
    mask = values.get(names.mask)
    if mask is None:
        return {}
    rungs = [np.flatnonzero(row > 0) for row in mask]
    places = [kept if kept.size else np.zeros(1, np.int64) for kept in rungs]
    return dict(zip(names.kept_inputs(len(places)), places, strict=True))
