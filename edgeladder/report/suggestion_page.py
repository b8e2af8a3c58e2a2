"""The page of `suggest`: thumbnails in the order in which to label."""

from __future__ import annotations

from pathlib import Path

from edgeladder.core.suggestion import Suggested, Suggestions
from edgeladder.report.review_page import figure, grid, write_page

_PICTURES = 1000  # of the page; all are in --json


def write_suggestions(path: Path, found: Suggestions, *, pictures: bool = True) -> Path:
    """Write the page.

    Args:
        path: the page.
        found: what is proposed, with thumbnails where they are wanted.
        pictures: whether thumbnails are shown.

    Raises:
        ConfigError: the path holds what is no page of ours.
        StorageError: no space left.
    """
    shown = found.thumbnails if pictures else {}
    figures = [figure(item.path, shown, _lines(item)) for item in found.pictures[:_PICTURES]]
    words = f"{len(found.pictures)} of {found.unlabelled} pictures without a label"
    section = f"<section><h2>In this order</h2>{grid(figures)}</section>"
    return write_page(path, "Pictures to label next", words, [section])


def _lines(item: Suggested) -> list[str]:
    lines = ["not sure" if item.reason == "uncertain" else f"stands for {item.stands_for}"]
    if item.guess is not None:
        lines.append(f"{item.guess}? {100 * (item.probability or 0):.0f} %")
    return lines
