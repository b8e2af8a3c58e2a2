"""Bounds of numbers in a configuration, written `Annotated[int, Ge(1)]`.

The names and meanings are those of the package annotated-types, which would cost the supervisor a
tenth of its memory; these are read by `records`, and pydantic understands them all the same.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Bound:
    """One side of a range."""

    limit: float
    name: ClassVar[str]
    compare: ClassVar[Callable[[Any, Any], bool]]

    def holds(self, value: float) -> bool:
        """Whether a value lies on the right side."""
        return type(self).compare(value, self.limit)

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Pydantic's own check under the same name, so that its messages stay its own."""
        return {**handler(source), self.name: self.limit}


class Ge(Bound):
    """At least."""

    name, compare = "ge", operator.ge


class Gt(Bound):
    """More than."""

    name, compare = "gt", operator.gt


class Le(Bound):
    """At most."""

    name, compare = "le", operator.le


class Lt(Bound):
    """Less than."""

    name, compare = "lt", operator.lt
