"""Text that may go to a terminal or onto a page: what steers either is escaped.

Names of files, classes and boxes come from outside. Control characters in them could move the
cursor, recolour or hide text; marks of writing direction show one name as another (CVE-2021-42574,
"Trojan Source"); a lone surrogate, which Python puts for a byte of a file name that is not UTF-8,
cannot be encoded at all. Each is written as its JSON escape instead, in this one place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

# C0 without tab and newline, DEL and C1, direction marks, line separators, surrogates, tags
_STEERS = (
    r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
    r"\ufff9-\ufffb\U000e0000-\U000e007f"
)
_TEXT = re.compile(f"[{_STEERS}]")
_LINE = re.compile(f"[{_STEERS}\t\n]")
_PART = 1 << 16  # characters of JSON made at a time


def printable(text: object) -> str:
    """Text of any length; its tabs and line ends stay."""
    return _TEXT.sub(_escape, str(text))


def one_line(text: object) -> str:
    """Text that stays on its line and in its column."""
    return _LINE.sub(_escape, str(text))


def json_text(values: Any, *, indent: int | None = 2, allow_nan: bool = True) -> str:
    r"""JSON that anyone can read, of the same values whatever is in them.

    Characters that steer a terminal, and surrogates, stand as `\uXXXX`, which JSON takes for the
    character itself: nothing is lost.
    """
    return printable(json.dumps(values, indent=indent, ensure_ascii=False, allow_nan=allow_nan))


def json_parts(values: Any) -> Iterator[str]:
    """What `json_text` gives, a part at a time: a long one is never in memory whole."""
    encoder = json.JSONEncoder(indent=2, ensure_ascii=False)
    waiting, held = list[str](), 0
    for token in encoder.iterencode(values):
        waiting.append(token)
        held += len(token)
        if held >= _PART:
            yield printable("".join(waiting))
            waiting, held = [], 0
    yield printable("".join(waiting))


def _escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]
