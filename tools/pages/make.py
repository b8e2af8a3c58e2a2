"""Writes the parts of the guides that are made from the code, between marks in the pages.

    python -m tools.pages.make            writes them
    python -m tools.pages.make --check    says which are not as the code is, and ends with 1

A part stands between `<!-- made: NAME -->` and `<!-- end -->`; what a person writes is around it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from tools.pages import commands, library, python_api

DOCS = Path(__file__).resolve().parents[2] / "docs"
PARTS: dict[str, Callable[[], str]] = {
    "commands": commands.text,
    "devices": library.devices,
    "models": library.models,
    "profiles": library.profiles,
    "profile keys": library.keys,
    "python": python_api.text,
}
_PART = re.compile(r"(<!-- made: ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """The pages with a part that is made."""
    return [page for page in sorted(DOCS.glob("*.md")) if _PART.search(page.read_text("utf-8"))]


def renewed(text: str) -> str:
    """A page's text with each part as the code has it now."""
    return _PART.sub(lambda found: f"{found[1]}\n{PARTS[found[2]]()}\n\n{found[3]}", text)


def main(arguments: list[str]) -> int:
    """Write what is old, or name it."""
    old = []
    for page in pages():
        text = page.read_text("utf-8")
        made = renewed(text)
        if made != text:
            old.append(page.name)
            if "--check" not in arguments:
                page.write_text(made, "utf-8")
    if "--check" not in arguments:
        print("\n".join(f"wrote {name}" for name in old) or "all is as it should be")
        return 0
    print("\n".join(f"{name} is old: python -m tools.pages.make" for name in old))
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
