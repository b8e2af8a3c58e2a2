"""Sizes as people write them. Standard library only: the supervisor's memory counts."""

from __future__ import annotations

import re

from edgeladder.core.errors import ConfigError

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}

_LEAST_WITHOUT_UNIT = 10**6  # fewer bytes than this are a number whose unit was forgotten
_LARGEST = 2.0**63  # no machine counts further, and a float of 400 digits is infinite


def parse_size(text: str | int) -> int:
    """Bytes of a size such as `4GB` (4e9), `4GiB` (2^32), `512MB` or a plain number of bytes.

    Raises:
        ConfigError: not a size, not positive, more than any machine has, or a few bytes: `4` is a
            size without its unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    unit = _UNITS.get(match.group(2).lower()) if match else None
    amount = float(match.group(1)) * unit if match and unit is not None else 0.0
    size = int(amount) if amount < _LARGEST else 0
    if size <= 0:
        raise ConfigError(
            f"{str(text)!r} is not a size", remedy="write it like 4GB (4e9 bytes), 4GiB or 192MB"
        )
    if match and not match.group(2) and size < _LEAST_WITHOUT_UNIT:
        # nobody means 4 bytes; the unit that makes a machine's memory of the number
        unit_meant = "GB" if size <= 64 else "MB"
        raise ConfigError(
            f"{str(text).strip()!r} is {size} bytes: the unit is missing",
            remedy=f"write {size}{unit_meant}; with a unit any size is taken as it stands",
        )
    return size


def exact_size(size_bytes: int) -> str:
    """A size as it may be typed, nothing rounded: `600MB`, `1GB`, `123456789`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if size_bytes and size_bytes % size == 0:
            return f"{size_bytes // size}{unit}"
    return str(size_bytes)


def format_size(size_bytes: float) -> str:
    """A size in the decimal units the command line takes: `148 MB`, `2.1 GB`."""
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.1f} GB"
    if size_bytes >= 1e6:
        return f"{size_bytes / 1e6:.0f} MB"
    return f"{size_bytes / 1e3:.0f} kB"
