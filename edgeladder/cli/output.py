"""stdout is data, stderr is talk: where a command's answer and failure go."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.printable import json_text, one_line, printable


@dataclass(frozen=True)
class Answer:
    """What a command found: plain values for `--json`, and how to say them to a person."""

    values: dict[str, Any]
    text: str | Callable[[], str] = ""
    exit_code: int = 0


class Output:
    """Holds stdout for exactly one JSON object under `--json`; everything else goes to stderr.

    The redirection is of the file descriptor, so that worker processes and C libraries cannot
    slip a line into the JSON either.
    """

    def __init__(self, as_json: bool):
        self.as_json = as_json
        self._stdout: int | None = None
        self._print: TextIO = sys.stdout

    def __enter__(self) -> Output:
        if self.as_json:
            sys.stdout.flush()
            self._stdout = os.dup(1)
            os.dup2(2, 1)
            self._print = sys.stdout
            sys.stdout = sys.stderr
        return self

    def __exit__(self, *_: object) -> None:
        if self._stdout is not None:
            sys.stdout = self._print
            os.dup2(self._stdout, 1)
            os.close(self._stdout)
            self._stdout = None

    def answer(self, answer: Answer) -> None:
        """Print a command's answer."""
        if self.as_json:
            self._write(answer.values)
            return
        text = answer.text() if callable(answer.text) else answer.text
        if text:
            print(printable(text))

    def failure(self, error: EdgeLadderError) -> None:
        """Print an error: a JSON object on stdout, or a few lines on stderr."""
        if self.as_json:
            details = dict(error.to_dict())
            minimum = getattr(error, "minimum_budget_bytes", None)
            if minimum is not None:
                details["minimum_budget_bytes"] = minimum
            self._write({"error": details})
            return
        print(f"error: {printable(error.message)}", file=sys.stderr)
        if error.where:
            print(f"where: {one_line(error.where)}", file=sys.stderr)
        if error.remedy:
            print(f"help:  {printable(error.remedy)}", file=sys.stderr)

    def _write(self, values: dict[str, Any]) -> None:
        data = (json_text(plain(values), allow_nan=False) + "\n").encode("utf-8")
        target = 1 if self._stdout is None else self._stdout
        while data:
            data = data[os.write(target, data) :]


def plain(value: Any) -> Any:
    """JSON-ready copy: numpy scalars and arrays, paths and tuples; NaN and infinity are null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int, bool)):
        return value
    if hasattr(value, "tolist"):  # numpy, without importing it
        return plain(value.tolist())
    if hasattr(value, "__fspath__"):
        return os.fspath(value)
    return str(value)


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Columns of text aligned by their widest cell; numbers flush right."""
    cells = [[_cell(item) for item in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        for i in range(len(header))
    ]
    lines = []
    for row in [header, *cells]:
        columns = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(columns).rstrip())
    return "\n".join(lines)


def _cell(item: Any) -> str:
    if item is None:
        return "-"
    return f"{item:.3f}" if isinstance(item, float) else one_line(item)
