"""A thread in which a tower works while the next pictures are decoded.

Decoding, resizing and a tower's products all let go of Python's lock, so on a machine with a core
to spare they take as long as the slower of them, not as long as both.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

_LOOK_SECONDS = 0.1  # between two looks at who waits


class _LeftError(Exception):
    """Ends work that nobody waits for any more."""


class TowerLane:
    """One piece of work at a time, beside whoever started it."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._leave = False

    def start(self, work: Callable[[], None]) -> None:
        """Begin; what was begun before has been waited for."""
        assert self._thread is None

        def run() -> None:
            try:
                work()
            except _LeftError:
                pass
            except BaseException as error:  # it is raised where the work is waited for
                self._error = error

        self._thread = threading.Thread(target=run, name="tower", daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Called by the work now and then: does not return once it was told to stop."""
        if self._leave:
            raise _LeftError

    def wait(self, meanwhile: Callable[[], None]) -> None:
        """Until the work is done.

        Args:
            meanwhile: called ten times a second; may raise, and the work goes on then.

        Raises:
            BaseException: what the work raised.
        """
        while self._thread is not None:
            self._thread.join(_LOOK_SECONDS)
            if not self._thread.is_alive():
                self._thread = None
            meanwhile()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def stop(self) -> None:
        """Have the work end where it is, and wait for that; its own error is forgotten."""
        self._leave = True
        if self._thread is not None:
            self._thread.join()
        self._thread, self._error, self._leave = None, None, False
