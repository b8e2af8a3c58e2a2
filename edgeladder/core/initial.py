"""The values a training starts from: parameters and buffers of a bundle's ladder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from edgeladder.core.bundle import Bundle


def initial_values(bundle: Bundle) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters, then buffers, one at a time in the manifest's order, each of its full shape.

    A residual ladder starts with its ways out at zero. Parameters that are all zero are not stored
    in a bundle (they are most of what would be) and come as zeros here.
    """
    import numpy as np
    from safetensors import safe_open

    ladder = bundle.manifest.ladder
    with safe_open(bundle.path(ladder.initial), framework="numpy") as stored:
        names = set(stored.keys())
        for parameter in ladder.parameters:
            name = parameter.name
            there = name in names
            yield name, stored.get_tensor(name) if there else np.zeros(parameter.shape, np.float32)
        for buffer in ladder.buffers:
            yield buffer.name, stored.get_tensor(buffer.name)
