"""One reader and one writer for every record that crosses a process, a file or a wing.

A record is a frozen dataclass. `to_json` makes plain JSON values of it, `from_json` makes the
record of them again and checks names, types and bounds on the way: `from_json(type(r), to_json(r))
== r`. Standard library only, because the supervisor and the workers that count inside the budget
read records; YAML that people write is validated in `yaml_config`, with all errors at once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from edgeladder.core.bounds import Bound
from edgeladder.core.errors import IntegrityError
from edgeladder.core.files import read_json

Record = TypeVar("Record")

_LARGEST = 2**63 - 1
_AGAIN = "use the edgeladder version that wrote it, or write it anew"


def to_json(record: Any) -> Any:
    """Plain JSON values of a record, a list or mapping of records, or a plain value."""
    if hasattr(record, "to_json"):
        return record.to_json()
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        names = (item.name for item in dataclasses.fields(record))
        return {name: to_json(getattr(record, name)) for name in names}
    if isinstance(record, dict):
        return {str(key): to_json(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_json(item) for item in record]
    return record


def compact_json(record: Any) -> str:
    """JSON text of a record without a space: what digests and metadata hold."""
    return json.dumps(to_json(record), separators=(",", ":"), ensure_ascii=False)


def from_json(
    kind: type[Record], values: Any, *, where: str = "", others_keys: bool = False
) -> Record:
    """The record of plain values.

    Args:
        kind: a frozen dataclass.
        values: as parsed from JSON; keys that are left out take their defaults.
        where: the file or pipe they came from, for the error.
        others_keys: pass over keys that the record does not have (of another version).

    Raises:
        IntegrityError: a key is missing or unknown, or a value of another type or out of bounds;
            the message holds its path.
    """
    try:
        found: Record = _read(kind, values, "$", others_keys)
    except ValueError as error:
        raise IntegrityError(str(error), where=where or kind.__name__, remedy=_AGAIN) from error
    return found


def read_record(kind: type[Record], path: Path, *, others_keys: bool = False) -> Record:
    """The record in a JSON file.

    Raises:
        IntegrityError: not JSON, or not this record.
    """
    try:
        values = read_json(path)
    except ValueError as error:
        raise IntegrityError(f"not JSON: {error}", where=str(path), remedy=_AGAIN) from error
    return from_json(kind, values, where=str(path), others_keys=others_keys)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _record(kind: Any, values: Any, path: str, others: bool) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"expected an object @ {path}")
    hints = _hints(kind)
    fields = {item.name: item for item in dataclasses.fields(kind) if item.init}
    unknown = [key for key in values if key not in fields]
    if unknown and not others:
        raise ValueError(f"unknown key @ {path}.{unknown[0]}")
    found: dict[str, Any] = {}
    for name, item in fields.items():
        if name in values:
            found[name] = _read(hints[name], values[name], f"{path}.{name}", others)
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise ValueError(f"missing @ {path}.{name}")
    try:
        return kind(**found)
    except ValueError as error:  # what a record's own __post_init__ finds
        raise ValueError(f"{error} @ {path}") from None


def _read(kind: Any, value: Any, path: str, others: bool) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        found = _read(arguments[0], value, path, others)
        _check_bounds(found, arguments[1:], path)
        return found
    if origin in (Union, types.UnionType):
        return _union(arguments, value, path, others)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{value!r} is none of {', '.join(map(str, arguments))} @ {path}")
        return value
    if origin in (list, tuple):
        return _sequence(origin, arguments, value, path, others)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"expected an object @ {path}")
        return {k: _read(arguments[1], v, f"{path}.{k}", others) for k, v in value.items()}
    if dataclasses.is_dataclass(kind):
        if hasattr(kind, "from_json"):
            return _own_reader(kind, value, path)
        return value if isinstance(value, kind) else _record(kind, value, path, others)  # type: ignore[arg-type]  # a class, which mypy cannot see
    return _plain(kind, value, path)


def _own_reader(kind: Any, value: Any, path: str) -> Any:
    try:
        return kind.from_json(value)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not a {kind.__name__}: {error!r} @ {path}") from None


def _union(arguments: tuple[Any, ...], value: Any, path: str, others: bool) -> Any:
    if value is None and type(None) in arguments:
        return None
    choices = [choice for choice in arguments if choice is not type(None)]
    for choice in choices[:-1]:
        try:
            return _read(choice, value, path, others)
        except ValueError:
            continue
    return _read(choices[-1], value, path, others)


def _sequence(origin: Any, arguments: tuple[Any, ...], value: Any, path: str, others: bool) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"expected a list @ {path}")
    if origin is list or arguments[1:] == (...,):
        kinds = [arguments[0]] * len(value)
    else:
        kinds = list(arguments)
        if len(kinds) != len(value):
            raise ValueError(f"expected {len(kinds)} items @ {path}")
    pairs = enumerate(zip(kinds, value, strict=True))
    return origin(_read(kind, item, f"{path}[{n}]", others) for n, (kind, item) in pairs)


def _plain(kind: Any, value: Any, path: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"a number of {len(str(value))} digits @ {path}") from None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"expected {kind.__name__}, got {type(value).__name__} @ {path}")
    if isinstance(value, int) and abs(value) > _LARGEST:  # what is counted with it may be a float
        raise ValueError(f"a number of {len(str(value))} digits @ {path}")
    return value


def _check_bounds(value: Any, bounds: tuple[Any, ...], path: str) -> None:
    for bound in bounds:
        if isinstance(bound, Bound) and value is not None and not bound.holds(value):
            raise ValueError(f"{value} is not {bound.name} {bound.limit} @ {path}")
