"""Who uses a cache: jobs share its lock, and whoever removes something takes it alone.

    cache/.in-use         locked (flock) while anybody reads or writes below this folder

Standard library only: the supervisor holds it from a job's first phase to its last, because
between two workers no store is open.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from edgeladder.core.errors import ConfigError
from edgeladder.core.locks import Tell, take_lock

IN_USE = ".in-use"


def share_cache(folder: Path, tell: Tell | None = None) -> int | None:
    """A descriptor that keeps a cache from being pruned until it is closed.

    None where the cache is not there, or belongs to somebody else: nobody prunes that from here.

    Raises:
        ConfigError: it is being pruned, and goes on being so.
    """
    try:
        descriptor = os.open(folder / IN_USE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:
        return None
    if take_lock(descriptor, f"the cache {folder}", tell, shared=True):
        return descriptor
    os.close(descriptor)
    raise ConfigError(
        "this cache is being pruned", where=str(folder), remedy="run the command again in a moment"
    )


@contextlib.contextmanager
def cache_alone(folder: Path) -> Iterator[None]:
    """Have a cache for oneself.

    Raises:
        ConfigError: a job uses it.
    """
    remedy = "wait for it to end (`edgeladder runs` lists unfinished ones)"
    with lock_alone(folder, IN_USE, "a running job uses this cache", remedy):
        yield


@contextlib.contextmanager
def lock_alone(folder: Path, name: str, refusal: str, remedy: str) -> Iterator[None]:
    """Hold the lock of a cache's folder, in the file `name`, with nobody beside.

    Raises:
        ConfigError: somebody holds it and goes on; `refusal` and `remedy` are its words.
    """
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        if not take_lock(descriptor, f"the cache {folder}"):
            raise ConfigError(refusal, where=str(folder), remedy=remedy)
        yield
    finally:
        os.close(descriptor)
