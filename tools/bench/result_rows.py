"""Rows of results as a benchmark keeps them: one CSV that it goes on with where it stopped."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

Row = dict[str, object]


def read(path: Path) -> list[Row]:
    """The rows of a file of results.

    Raises:
        FileNotFoundError: there is none.
    """
    with open(path, newline="", encoding="utf-8") as stream:
        return [dict(row) for row in csv.DictReader(stream)]


def load(path: Path) -> list[Row]:
    """The rows of an earlier run; none where there was none."""
    return read(path) if path.is_file() else []


def save(path: Path, rows: Sequence[Mapping[str, object]], fields: Sequence[str]) -> None:
    """All rows; the file is complete or as before."""
    new = path.with_name(path.name + ".new")
    with open(new, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=fields)
        writer.writeheader()
        writer.writerows(rows)
    new.replace(path)
