"""Names that pictures have; next to nothing is imported, because waiting processes ask too."""

from pathlib import Path

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".avif", ".jp2"}
)


def is_picture(name: str) -> bool:
    """Whether a file is one by its name."""
    return Path(name).suffix.lower() in EXTENSIONS
