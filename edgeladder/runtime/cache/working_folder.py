"""Where a running precompute keeps hidden states: a folder of its own inside the cache."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from edgeladder.core import disk
from edgeladder.core.files import storage_errors
from edgeladder.core.ownership import require_ours

_SPILLED = ("*.spill", "*.stage")  # the second: before version 0.2


def working_folder(cache_folder: Path) -> Path:
    """A fresh folder for hidden states, after removing those of processes that are gone.

    Raises:
        ConfigError: the cache is no folder.
        StorageError: the folder cannot be made.
    """
    require_ours(cache_folder, "cache", option="--cache")
    with storage_errors(cache_folder):
        for path in cache_folder.glob("work-*"):
            owner = path.name.removeprefix("work-")
            if owner.isdigit() and not Path(f"/proc/{owner}").exists():
                remove_working_folder(path)
        folder = cache_folder / f"work-{os.getpid()}"
        disk.make_folders(folder)
    return folder


def remove_working_folder(folder: Path) -> None:
    """Remove hidden states and their folder; anything else in it, and so the folder, stays."""
    with contextlib.suppress(OSError):
        for path in [path for pattern in _SPILLED for path in folder.glob(pattern)]:
            disk.unlink(path)
        disk.remove_folder(folder)
