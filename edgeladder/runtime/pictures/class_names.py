"""`classes.yaml`: readable names, aliases and prompt templates for class folders.

templates: ["a photo of a {}.", "a photo of the {}, a garment."]   # optional
longsleeve: long-sleeved shirt
hat: {name: sun hat, aliases: [cap, beanie]}
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from edgeladder.core.errors import DataError

FILE = "classes.yaml"
_TEMPLATES = "templates"
_REMEDY = "write `folder: readable name` or `folder: {name: .., aliases: [..]}` a line"


@dataclass(frozen=True)
class ClassName:
    """What a class is called in prompts."""

    name: str
    aliases: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[str, ...]:
        """The name and its aliases."""
        return (self.name, *self.aliases)


def readable(folder: str) -> ClassName:
    """The name of a folder nobody described: its own, with underscores as spaces."""
    return ClassName(" ".join(folder.replace("_", " ").split()) or folder)


def suggestion(name: str, known: list[str]) -> str:
    """`did you mean 'x'? ` for the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}? " if close else ""


def parse_names(
    text: str, classes: list[str], *, where: str
) -> tuple[list[ClassName], list[str] | None]:
    """Names for `classes`, in their order, and the templates if the file has any.

    Raises:
        DataError: not YAML, of another form, or about a class that does not exist.
    """
    names, templates = read_names(text, where=where)
    for key in names:
        if key not in classes:
            raise DataError(
                f"{key!r} is not a class of these pictures",
                where=where,
                remedy=f"{suggestion(key, classes)}correct or remove the line",
            )
    return [names.get(name) or readable(name) for name in classes], templates


def read_names(text: str, *, where: str) -> tuple[dict[str, ClassName], list[str] | None]:
    """All that such a file says: names by class folder, in its order, and templates if it has any.

    Raises:
        DataError: not YAML, or of another form.
    """
    import yaml  # a megabyte that most data sets do not need

    try:
        # BaseLoader leaves every scalar a string, so that a class called `no` stays `no`
        values = yaml.load(text, Loader=getattr(yaml, "CBaseLoader", yaml.BaseLoader)) or {}
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"not YAML: {why}", where=where, remedy="correct the file") from error
    if not isinstance(values, dict):
        raise DataError("expected class folders as keys", where=where, remedy=_REMEDY)
    templates = None
    if isinstance(values.get(_TEMPLATES), list):
        templates = [_template(item, where) for item in values.pop(_TEMPLATES)]
    return {key: _entry(key, value, where) for key, value in values.items()}, templates


def _template(value: Any, where: str) -> str:
    if not isinstance(value, str) or value.count("{}") != 1:
        raise DataError(
            f"template {str(value)[:80]!r} needs exactly one {{}}"
            if isinstance(value, str)
            else f"expected text under `{_TEMPLATES}`",
            where=where,
            remedy="write it like `a photo of a {}.`",
        )
    return value


def _entry(key: str, value: Any, where: str) -> ClassName:
    if isinstance(value, str) and value.strip():
        return ClassName(value.strip())
    if isinstance(value, dict):
        unknown = sorted(set(value) - {"name", "aliases"})
        if unknown:
            raise DataError(
                f"unknown key {unknown[0]!r} @ {key}",
                where=where,
                remedy=f"{suggestion(unknown[0], ['name', 'aliases'])}{_REMEDY}",
            )
        name, aliases = value.get("name", readable(key).name), value.get("aliases", [])
        texts = [name, *aliases] if isinstance(aliases, list) else [None]
        if all(isinstance(item, str) and item.strip() for item in texts):
            return ClassName(name.strip(), tuple(item.strip() for item in aliases))
    raise DataError(f"cannot read the entry of {key!r}", where=where, remedy=_REMEDY)
