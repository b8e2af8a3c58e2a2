"""Symbolic tensor extents: `5*B + 3*C + 8`, linear in the sizes known only at run time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Dim = "int | Extent"
Shape = tuple["int | Extent", ...]


@dataclass(frozen=True)
class Extent:
    """`constant + sum of coefficient * symbol`, with at least one symbol."""

    constant: int
    terms: tuple[tuple[str, int], ...]  # sorted by symbol, no zero coefficients

    def __str__(self) -> str:
        parts = [s if c == 1 else f"{c}*{s}" for s, c in self.terms]
        return " + ".join([*parts, *([str(self.constant)] if self.constant else [])])

    def __add__(self, other: int | Extent) -> int | Extent:
        return combine([(self, 1), (other, 1)])

    __radd__ = __add__

    def __mul__(self, factor: int) -> int | Extent:
        return combine([(self, factor)])

    __rmul__ = __mul__


def combine(parts: Iterable[tuple[int | Extent, int]]) -> int | Extent:
    """The sum of extent * factor, an int when no symbol is left."""
    constant = 0
    terms: dict[str, int] = {}
    for extent, factor in parts:
        if isinstance(extent, int):
            constant += extent * factor
            continue
        constant += extent.constant * factor
        for symbol, coefficient in extent.terms:
            terms[symbol] = terms.get(symbol, 0) + coefficient * factor
    left = tuple(sorted((s, c) for s, c in terms.items() if c))
    return Extent(constant, left) if left else constant


def symbol(name: str) -> Extent:
    """The extent that is one symbol."""
    return Extent(0, ((name, 1),))


def parse(text: str) -> int | Extent:
    """The inverse of `str`: an extent from its text."""
    parts: list[tuple[int | Extent, int]] = []
    for part in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d+)\s*\*\s*)?([A-Za-z_]\w*|\d+)\s*", part)
        if match is None:
            raise ValueError(f"not an extent: {text!r}")
        factor, atom = match.groups()
        parts.append((int(atom) if atom.isdigit() else symbol(atom), int(factor or 1)))
    return combine(parts)


def substitute(extent: int | Extent, values: Mapping[str, int]) -> int | Extent:
    """Replace symbols by numbers; those not named stay."""
    if isinstance(extent, int):
        return extent
    parts: list[tuple[int | Extent, int]] = [(extent.constant, 1)]
    parts += [(values.get(s, symbol(s)), c) for s, c in extent.terms]
    return combine(parts)


def evaluate(shape: Iterable[int | Extent], values: Mapping[str, int]) -> tuple[int, ...]:
    """A shape in numbers; every symbol must be given."""
    sizes = [substitute(dim, values) for dim in shape]
    return tuple(size if isinstance(size, int) else _unknown(size) for size in sizes)


def _unknown(extent: Extent) -> int:
    raise ValueError(f"no value for a symbol of {extent}")
