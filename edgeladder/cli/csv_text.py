"""`--csv`: the rows of an answer for a spreadsheet or another program."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from edgeladder.core.errors import ConfigError


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """RFC 4180 with line feeds; None is an empty cell."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue().rstrip("\n")


def predictions(values: dict[str, Any]) -> str:
    """A row for each label of each picture, best first; one with the error where there is none."""
    rows: list[list[Any]] = []
    for item in values["predictions"]:
        labels = item["labels"] or [{"label": None, "probability": None}]
        for rank, found in enumerate(labels, 1):
            told = [found["label"], found["probability"], item.get("known"), item["error"]]
            rows.append([item["path"], rank if found["label"] is not None else None, *told])
    return csv_text(["path", "rank", "label", "probability", "known", "error"], rows)


def accuracies(values: dict[str, Any]) -> str:
    """A row for each class."""
    rows = [[name, item["count"], item["accuracy"]] for name, item in values["per_class"].items()]
    return csv_text(["class", "pictures", "accuracy"], rows)


def require_one(as_csv: bool, as_json: bool) -> None:
    """Refuse two forms of one answer.

    Raises:
        ConfigError: both were asked for.
    """
    if as_csv and as_json:
        raise ConfigError("--csv and --json are two answers", remedy="ask for one of them")
