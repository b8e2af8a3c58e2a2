"""A worker does not outlive its supervisor: without one nobody watches its memory.

Two ways, because neither is enough. The kernel's parent-death signal (Linux) ends a worker whatever
it does, but leaves it no time; it is used where there is nothing to save. The end of the pipe that
orders come through lets a worker save first, yet is only noticed once Python runs; a timer with the
default action ends it when the time is up, whatever it does then.
"""

from __future__ import annotations

import contextlib
import os
import signal

GRACE_SECONDS = 0.3  # for what is at hand: half a second is promised
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int) -> None:
    """Ask the kernel for SIGKILL when the process that started this one ends; Linux only.

    Args:
        parent: its process id. One that ended before the kernel was asked is noticed by it, since
            an orphan has another parent.
    """
    _set_death_signal(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def leave_time_to_save() -> None:
    """Take `end_with_parent` back: the end of the orders' pipe is acted upon from here on."""
    _set_death_signal(0)


def end_soon() -> None:
    """End this process in `GRACE_SECONDS`, unless it has ended by itself before."""
    if hasattr(signal, "setitimer"):
        # the default action is the kernel's own: no Python has to run for it
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS)


def _set_death_signal(number: int) -> None:
    import ctypes  # half a megabyte, which workers have through numpy anyway

    with contextlib.suppress(OSError, AttributeError):  # no Linux
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
