"""Names that pictures have; nothing else is imported, because waiting processes ask too."""

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".avif", ".jp2"}
)
