"""What ships with the package: the model nano, by its name, and the pictures of the demo."""

from __future__ import annotations

from pathlib import Path

NANO = "nano"
SHIPPED = Path(__file__).parents[1] / "_nano"
NANO_BUNDLE = SHIPPED / "bundle"
DEMO_PICTURES = SHIPPED / "pictures.zip"


def named_bundle(path: str | Path) -> Path:
    """The bundle that a person means: `nano` is the one that ships, unless a file has that name."""
    found = Path(path)
    return NANO_BUNDLE if str(path) == NANO and not found.exists() else found
