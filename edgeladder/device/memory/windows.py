"""How many classes weigh as much as a chunk of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # pydantic costs a worker 20 MB
    from edgeladder.bundle import LadderRecord


def class_chunk(ladder: LadderRecord, chunk: int) -> int:
    """Classes whose activations and taps take the memory of `chunk` pictures'.

    A class has fewer tokens than a picture, so that as many classes as pictures would leave half
    of a window's memory unused and need more windows, each of which pays for a whole graph's nodes.
    """

    def per_sample(side: str, place: int) -> float:
        taps = sum(len(g.taps) * g.tokens * g.width for g in ladder.groups if g.side == side)
        lines = ladder.graphs[f"pull_{side}"].peaks
        return 4.0 * taps + max((line[place] for line in lines), default=0.0)

    return max(1, int(chunk * per_sample("image", 1) / max(1.0, per_sample("text", 2))))
