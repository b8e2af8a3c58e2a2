"""Where a machine remembers what it measured and made for itself, below the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/edgeladder`, or `~/.cache/edgeladder`; it need not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "edgeladder"


def baseline_path(folder: Path | None = None) -> Path:
    """The file of remembered baselines: what a process costs here before it does any work.

    Args:
        folder: None: the user's cache.
    """
    return (folder or user_cache()) / "baseline.json"
