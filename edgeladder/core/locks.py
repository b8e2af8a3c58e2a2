"""Locks on files between processes: waited for a while, with a word about what for.

What holds one may be on its way out: a worker whose supervisor was killed ends within half a
second, and a command that is run again at once would otherwise fail on its lock.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable

WAIT_SECONDS = 10.0  # after that whoever holds it is at work, not on its way out
_POLL_SECONDS = 0.05

Tell = Callable[[str], None]


def take_lock(
    descriptor: int, what: str, tell: Tell | None = None, *, shared: bool = False
) -> bool:
    """Take a lock (flock), waiting up to `WAIT_SECONDS` for it.

    Args:
        descriptor: of an open file; the lock ends with its last copy, those of children included.
        what: it is the lock of, for the line that is told.
        tell: told once that there is something to wait for.
        shared: beside others that share it, and not alone.

    Returns:
        Whether it was had.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    told = False
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        if time.monotonic() >= deadline:
            return False
        if not told and tell is not None:
            told = True
            tell(f"waiting up to {WAIT_SECONDS:.0f} s for the lock of {what}")
        time.sleep(_POLL_SECONDS)
