"""Lists of labelled pictures: CSV, TSV and JSONL."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from edgeladder.core.errors import DataError
from edgeladder.core.plain_files import (
    LARGEST_RECORD_BYTES,
    LARGEST_TEXT_BYTES,
    read_plain_text,
)

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")


def read_rows(path: Path) -> list[tuple[str, str, str]]:
    """(path, label, split or "") of every row.

    Raises:
        DataError: a row without path or label, by its line number; an empty list.
    """
    text = listing(path, encoding="utf-8-sig", most=LARGEST_RECORD_BYTES)
    rows = _json_rows(text, path) if path.suffix.lower() in SUFFIXES[2:] else _csv_rows(text, path)
    if not rows:
        raise DataError("the list is empty", where=str(path), remedy="give path,label a line")
    for name, label, _ in rows:
        if "\0" in name + label or not encodable(name + label):
            raise DataError(
                f"a path or label that no file can have: {name[:100]!r}, {label[:100]!r}",
                where=str(path),
                remedy="write it in UTF-8, without NUL characters",
            )
    return rows


def listing(path: Path, *, encoding: str = "utf-8", most: int = LARGEST_TEXT_BYTES) -> str:
    """The text of a file beside or instead of pictures; what is not of its encoding is replaced.

    Raises:
        DataError: unreadable, no plain file, or larger than `most` bytes.
    """
    try:
        return read_plain_text(path, most=most, encoding=encoding, errors="replace")
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read the list: {error}", where=str(path), remedy="name a plain text file"
        ) from error


def encodable(text: str) -> bool:
    """Whether text can be written as UTF-8: a name of other bytes holds lone surrogates."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _csv_rows(text: str, path: Path) -> list[tuple[str, str, str]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    columns = ["path", "label", "split"]
    rows = []
    for number, row in enumerate(_csv_lines(text, delimiter, path), 1):
        if not row or not any(cell.strip() for cell in row):
            continue
        cells = [cell.strip() for cell in row]
        if number == 1 and {"path", "label"} <= {cell.lower() for cell in cells}:
            columns = [cell.lower() for cell in cells]
            continue
        values = dict(zip(columns, cells, strict=False))
        if not values.get("path") or not values.get("label"):
            raise DataError(
                "expected path and label",
                where=f"{path}:{number}",
                remedy="write `path,label` or `path,label,split` in every line",
            )
        rows.append((values["path"], values["label"], values.get("split", "")))
    return rows


def _csv_lines(text: str, delimiter: str, path: Path) -> Iterator[list[str]]:
    lines = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        yield from lines
    except csv.Error as error:  # a field of 128 kB; a NUL, before Python 3.11
        raise DataError(
            f"not a list of rows: {error}",
            where=f"{path}:{lines.line_num}",
            remedy="write `path,label` a line, without NUL characters",
        ) from error


def _json_rows(text: str, path: Path) -> list[tuple[str, str, str]]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            rows.append((str(values["path"]), str(values["label"]), str(values.get("split") or "")))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(
                f"expected an object with path and label: {error}",
                where=f"{path}:{number}",
                remedy='write {"path": "a.jpg", "label": "dress"} in every line',
            ) from error
    return rows
