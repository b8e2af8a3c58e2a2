"""The Python page from signatures and docstrings (Google style, as everywhere in the package)."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import edgeladder

_FUNCTIONS = ("export", "plan", "precompute", "train", "resume", "load")
_RECORDS = ("Prediction",)
_ERRORS = (
    "EdgeLadderError",
    "ConfigError",
    "BudgetError",
    "DataError",
    "IntegrityError",
    "StorageError",
    "Interrupted",
)
_HEADS = ("Args", "Returns", "Raises", "Attributes")
_WIDEST = 96  # of a signature on one line


def text() -> str:
    """Functions, `Run` with its members, records, errors."""
    parts = [_callable(f"edgeladder.{name}", getattr(edgeladder, name)) for name in _FUNCTIONS]
    parts.append(f"### Run\n\n{_prose(edgeladder.Run)}")
    parts += [_member(name, item) for name, item in _members(edgeladder.Run)]
    parts += [_record(name) for name in _RECORDS]
    errors = [(name, getattr(edgeladder, name)) for name in _ERRORS]
    rows = [f"| `{name}` | {kind.exit_code} | {_summary(kind)} |" for name, kind in errors]
    parts.append("\n".join(["### Errors\n", "| | exit code | |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _members(owner: type[Any]) -> Iterator[tuple[str, Any]]:
    return ((name, item) for name, item in vars(owner).items() if not name.startswith("_"))


def _member(name: str, item: Any) -> str:
    if isinstance(item, property):
        kind = inspect.signature(item.fget).return_annotation if item.fget else ""
        return f"#### run.{name}\n\n```python\nrun.{name}: {kind}\n```\n\n{_prose(item)}"
    return _callable(f"run.{name}", item, level="####")


def _callable(name: str, function: Callable[..., Any], level: str = "###") -> str:
    return f"{level} {name}\n\n```python\n{_signature(name, function)}\n```\n\n{_prose(function)}"


def _signature(name: str, function: Callable[..., Any]) -> str:
    """As it is written in the source: on one line where it fits, else a parameter a line."""
    signature = inspect.signature(function)
    parameters = [item for name, item in signature.parameters.items() if name != "self"]
    given = [_parameter(item) for item in parameters]
    keywords = sum(item.kind is item.KEYWORD_ONLY for item in parameters)
    if keywords:
        given.insert(len(given) - keywords, "*")
    end = f") -> {signature.return_annotation}"
    line = f"{name}({', '.join(given)}{end}"
    if len(line) <= _WIDEST:
        return line
    return "\n".join([f"{name}(", *(f"    {item}," for item in given), end])


def _parameter(item: inspect.Parameter) -> str:
    told = f"{item.name}: {item.annotation}"  # as written: annotations are not evaluated
    if item.default is item.empty:
        return told
    default = f'"{item.default}"' if isinstance(item.default, str) else repr(item.default)
    return f"{told} = {default}"


def _prose(item: Any) -> str:
    """A docstring with its sections as lists."""
    lines = inspect.cleandoc(item.__doc__ or "").splitlines()
    out: list[str] = []
    section = ""
    for line in lines:
        head = re.fullmatch(rf"({'|'.join(_HEADS)}):( .*)?", line)
        if head:
            section = head[1]
            out += [f"**{section}**", "", *([f"- {head[2].strip()}"] if head[2] else [])]
        elif section and (entry := re.match(r"    (\w[\w, ]*): (.*)", line)):
            out.append(f"- `{entry[1]}`: {entry[2]}")
        elif section and line.startswith("    "):
            first = not out[-1] or out[-1].startswith("**")
            out.append(f"- {line.strip()}" if first else f"  {line.strip()}")
        else:
            section = "" if line else section
            out.append(line)
    return "\n".join(out).strip()


def _record(name: str) -> str:
    kind = getattr(edgeladder, name)
    fields = [
        f"| `{item.name}` | `{str(item.type).replace('|', chr(92) + '|')}` |"
        for item in dataclasses.fields(kind)
    ]
    return "\n".join([f"### {name}\n", _prose(kind), "", "| | |", "|---|---|", *fields])


def _summary(kind: Any) -> str:
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].split())
