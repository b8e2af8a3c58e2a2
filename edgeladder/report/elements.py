"""What every section of a report is made of: tables, folds, and shares as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


def section(title: str, body: str) -> str:
    """A section under its heading."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def none(words: str) -> str:
    """What a section without data says."""
    return f'<p class="none">{escape(words)}</p>'


def percent(share: Any) -> str:
    """`81.2 %`, or a dash."""
    known = isinstance(share, int | float) and math.isfinite(share)
    return f"{100 * share:.1f} %" if known else "–"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, head: bool = True) -> str:
    """A table that scrolls sideways on a phone."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    thead = f"<thead><tr>{top}</tr></thead>" if head else ""
    return f'<div class="scroll"><table>{thead}<tbody>{body}</tbody></table></div>'


def folded(title: str, body: str) -> str:
    """What opens at a touch."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"
