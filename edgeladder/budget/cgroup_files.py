"""Files of the kernel's cgroup hierarchies, read and written as text; nothing is decided here."""

from __future__ import annotations

UNLIMITED = 1 << 60  # cgroup v1 writes the largest number of pages there is for no limit


def read(path: str) -> str:
    """A file's text; empty where there is none to be had."""
    try:
        with open(path, encoding="ascii", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def write(path: str, text: str) -> bool:
    """Write a file; whether the kernel took it."""
    try:
        with open(path, "w", encoding="ascii") as stream:
            stream.write(text)
    except OSError:
        return False
    return True


def number(text: str) -> int | None:
    """A count of bytes; None for `max` or nothing."""
    return int(text) if text.isdigit() else None


def own_paths(proc: str) -> dict[str, str]:
    """This process's cgroup per controller; the unified hierarchy has the empty name."""
    paths = {}
    for line in read(f"{proc}/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        for name in names.split(","):
            paths[name] = path
    return paths


def statistics(path: str) -> dict[str, int]:
    """A file of `name number` lines, as `memory.stat` is."""
    found = {}
    for line in read(path).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            found[name] = int(value)
    return found
