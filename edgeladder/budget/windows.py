"""How a chunked step is cut into windows of pictures and of classes, and what that costs.

A chunked step encodes every window, takes the loss, and goes through the windows again
backward. A window whose activations are held from the first pass is not encoded twice.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgeladder.core.manifest import LadderRecord

# Only the ratio matters, of a node's overhead to arithmetic: it says whether small windows that
# hold everything beat large ones that do not. Measured on the reference ladder, two cores.
_NODE_SECONDS, _FLOP_SECONDS = 12e-6, 1e-11
_SIDES = ("image", "text")


def class_chunk(ladder: LadderRecord, chunk: int) -> int:
    """Classes whose activations and taps take the memory of `chunk` pictures'.

    A class has fewer tokens than a picture, so that as many classes as pictures would leave half
    of a window's memory unused and need more windows, each of which pays for a whole graph's nodes.
    """

    def per_sample(side: str, place: int) -> float:
        taps = sum(len(g.taps) * g.tokens * g.width for g in ladder.groups if g.side == side)
        lines = ladder.graphs[f"backward_{side}"].peaks
        return 4.0 * taps + max((line[place] for line in lines), default=0.0)

    return max(1, int(chunk * per_sample("image", 1) / max(1.0, per_sample("text", 2))))


class Windows:
    """One way to cut a step: `chunk` pictures, and as many classes as weigh the same, at a time."""

    def __init__(self, ladder: LadderRecord, batch: int, classes: int, chunk: int):
        self.chunk = chunk
        self.class_chunk = class_chunk(ladder, chunk)
        self._graphs = ladder.graphs
        self._samples = {"image": batch, "text": classes}
        self._count = {
            "image": math.ceil(batch / self.chunk),
            "text": math.ceil(classes / self.class_chunk),
        }
        trained = sum(math.prod(parameter.shape) for parameter in ladder.parameters)
        tokens = {
            side: max((g.tokens for g in ladder.groups if g.side == side), default=1)
            for side in _SIDES
        }
        self._flops = {side: 2.0 * trained * tokens[side] for side in _SIDES}  # one sample forward

    def _window_bytes(self, side: str) -> float:
        """What one window's activations take when held; infinite where no graph can hold them."""
        record = self._graphs.get(f"forward_saved_{side}")
        if record is None:
            return math.inf
        return record.residual_bytes * math.ceil(self._samples[side] / self._count[side])

    def held(self, hold_bytes: float) -> dict[str, int]:
        """Windows of either side that fit into `hold_bytes`, pictures first as the engine does."""
        found: dict[str, int] = {}
        room = hold_bytes
        for side in _SIDES:
            each = self._window_bytes(side)
            found[side] = (
                self._count[side] if each * self._count[side] <= room else int(room // each)
            )
            room -= found[side] * each if found[side] else 0
        return found

    def most_held(self, room_bytes: float) -> int:
        """Bytes that whole windows take of the room there is to hold them."""
        held = self.held(room_bytes)
        return math.ceil(sum(held[side] * self._window_bytes(side) for side in held if held[side]))

    def graphs(self, hold_bytes: int) -> tuple[str, ...]:
        """Names of the graphs such a step keeps loaded."""
        held = self.held(hold_bytes)
        names = ["loss"]
        for side in _SIDES:
            if held[side]:
                names += [f"forward_saved_{side}", f"backward_saved_{side}"]
            if held[side] < self._count[side]:
                names += [f"encode_{side}", f"backward_{side}"]
        return tuple(names)

    def seconds(self, hold_bytes: int) -> float:
        """A step's time on some machine, to compare one way with another."""
        held = self.held(hold_bytes)
        total = 0.0
        for side in _SIDES:
            share = held[side] / self._count[side]
            # forward once and backward; again forward where nothing was held
            total += _FLOP_SECONDS * self._flops[side] * self._samples[side] * (4 - share)
            for names, count in (
                (("forward_saved", "backward_saved"), held[side]),
                (("encode", "backward"), self._count[side] - held[side]),
            ):
                if count:
                    nodes = sum(self._graphs[f"{name}_{side}"].nodes for name in names)
                    total += _NODE_SECONDS * nodes * count
        return total
