"""Where a machine remembers what it measured and made for itself, below the user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """`$XDG_CACHE_HOME/edgeladder`, or `~/.cache/edgeladder`; it need not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "edgeladder"
