"""The values a training starts from: parameters and buffers of a bundle's ladder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.tensors import TensorFile

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle


def initial_values(bundle: Bundle) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters, then buffers, one at a time in the manifest's order, each of its full shape.

    A residual ladder starts with its ways out at zero. Parameters that are all zero are not stored
    in a bundle (they are most of what would be) and come as zeros here.
    """
    ladder = bundle.manifest.ladder
    stored = TensorFile(bundle.path(ladder.initial), remedy="copy or export the bundle again")
    for parameter in ladder.parameters:
        name = parameter.name
        yield name, stored[name] if name in stored else np.zeros(parameter.shape, np.float32)
    for buffer in ladder.buffers:
        yield buffer.name, stored[buffer.name]
