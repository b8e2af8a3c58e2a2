"""What an install takes on disk, distribution by distribution, and who asks for each.

    python tools/bench/install_size.py edgeladder

Run it with the Python of the environment to look at: what the named distributions need is followed
through their metadata, extras aside, and files are counted as their RECORD lists them, in MB of 1e6
bytes, bytecode apart. What pip, a compiler's cache or a test suite put beside them does not count.
"""

from __future__ import annotations

import re
import sys
from importlib import metadata

MB = 1e6


def needed(names: list[str]) -> dict[str, set[str]]:
    """Every installed distribution that `names` need, with who asks for it."""
    found: dict[str, set[str]] = {}
    todo = [(canonical(name), "") for name in names]
    while todo:
        name, asker = todo.pop()
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # another platform's or Python's
            continue
        known = name in found
        found.setdefault(name, set()).update({asker} - {""})
        if not known:
            todo += [
                (canonical(match[0]), name)
                for line in requirements
                if "extra ==" not in line and (match := re.match(r"[\w.-]+", line))
            ]
    return found


def canonical(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def sizes(name: str) -> tuple[float, float]:
    """MB of a distribution's files without bytecode, and of bytecode."""
    plain = compiled = 0.0
    for path in metadata.files(name) or []:
        place = path.locate()
        try:
            size = place.stat().st_size / MB  # type: ignore[attr-defined]  # a path in every Python
        except OSError:
            continue
        if path.suffix == ".pyc":
            compiled += size
        else:
            plain += size
    return plain, compiled


def main() -> None:
    """Print the table, largest first."""
    found = needed(sys.argv[1:] or ["edgeladder"])
    rows = sorted(((sum(sizes(name)), name) for name in found), reverse=True)
    print("| distribution | MB | of it bytecode | asked for by |\n|---|---|---|---|")
    for total, name in rows:
        askers = ", ".join(sorted(found[name])) or "you"
        print(f"| {name} | {total:.1f} | {sizes(name)[1]:.1f} | {askers} |")
    whole = sum(total for total, _ in rows)
    print(f"| all {len(rows)} | {whole:.1f} | {sum(sizes(name)[1] for name in found):.1f} | |")


if __name__ == "__main__":
    main()
