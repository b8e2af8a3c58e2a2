"""Rows of results as a benchmark keeps them, to go on where it stopped: a CSV, or JSON lines."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeladder.jobs.run_directory import read_metrics

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


def load_lines(state: Path | None) -> list[dict[str, Any]]:
    """JSON lines of earlier runs; half a line of one that was killed is left out."""
    return list(read_metrics(state)) if state is not None and state.is_file() else []


def add_lines(state: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Some more, after those that are there."""
    with state.open("a", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
