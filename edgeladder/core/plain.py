"""The bundle's manifest and the configuration as plain attributes.

The plan worker has validated both with pydantic, which costs a process 20 MB. The workers that
count, and do the work, read the same names from plain objects instead.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from edgeladder.core.files import read_json, sha256_file
from edgeladder.core.old_words import modern_manifest

# fields that are mappings by key rather than records
_MAPPINGS = {"ort_training", "options", "versions", "activation_bytes", "files", "sources"}
_RECORD_MAPPINGS = {"graphs"}


def plain(value: Any, name: str = "") -> Any:
    """JSON values as attributes; mappings by key stay dictionaries."""
    if isinstance(value, dict):
        if name in _MAPPINGS:
            return value
        if name in _RECORD_MAPPINGS:
            return {key: plain(item) for key, item in value.items()}
        return SimpleNamespace(**{key: plain(item, key) for key, item in value.items()})
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


class PlainBundle:
    """Stands in for `edgeladder.core.bundle.Bundle` after that one has checked every file."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        values = modern_manifest(read_json(self.folder / "manifest.json"))
        values.pop("files", None)  # thousands of entries nobody reads again
        self.manifest = plain(values)

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest: the bundle's identity."""
        return sha256_file(self.folder / "manifest.json")

    def path(self, name: str) -> Path:
        """The file of a manifest-relative name."""
        return self.folder / name
