"""Which picture is being decoded, told to whoever waits for it; and those that ended workers.

A worker that runs out of memory in a decoder, or falls over in one, can say nothing afterwards. So
it names each picture before it touches it, and passes over those that its predecessors ended on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edgeladder.runtime.pictures.sources import UnreadableError

ENDED = "whatever decoded it ended each time: memory ran out, or the decoder fell over it"


class DecodeWatch:
    """One worker's word on the picture it is at."""

    def __init__(self, avoid: Iterable[str] = (), tell: Callable[[str], None] | None = None):
        """Nothing is told yet.

        Args:
            avoid: paths whose decoding ended a worker again and again.
            tell: told a path before its picture is decoded, and "" once none is any more.
        """
        self._avoid, self._tell = frozenset(avoid), tell
        self._at = ""

    def refuse(self, path: str) -> None:
        """Raises UnreadableError for a picture that ended workers."""
        if path in self._avoid:
            raise UnreadableError(ENDED)

    def begins(self, path: str) -> None:
        """A picture is about to be read and decoded.

        Raises:
            UnreadableError: it ended workers.
        """
        self.refuse(path)
        self._say(path)

    def over(self) -> None:
        """What follows is no picture's doing."""
        if self._at:
            self._say("")

    def _say(self, path: str) -> None:
        self._at = path
        if self._tell is not None:
            self._tell(path)
