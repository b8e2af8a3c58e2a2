"""YAML as plain values, for processes to whom pydantic's 20 MB are too much.

What people write is validated in `yaml_config`. PyYAML reads `1e-5` as a string and `no` as False,
so that only records' readers, which coerce what it yields, and a run's own `config.yaml` use this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from edgeladder.core.errors import ConfigError
from edgeladder.core.plain_files import read_plain_text

# what a loader raises on text that is no YAML; PyYAML itself looks at the first letter of
# `!!int ""` (IndexError), `!!bool x` up in a table (KeyError) and takes any `!!timestamp` for one
UNREADABLE: tuple[type[Exception], ...] = (
    yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError,
    RecursionError,
)  # fmt: skip
# libyaml's parser, where PyYAML was built with it: the same values eight times as fast
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        ConfigError: unreadable, no plain file, above 16 MiB, or not YAML.
    """
    try:
        text = read_plain_text(path)
    except (OSError, ValueError) as error:  # absent, unreadable, not UTF-8, a NUL in its path
        raise ConfigError(
            f"cannot read YAML: {error}", where=str(path)[:300], remedy="correct the file"
        ) from error
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, *, where: str) -> Any:
    """The values of YAML text.

    Raises:
        ConfigError: not YAML; nested too deeply; a date or a number that cannot be.
    """
    try:
        return yaml.load(text, Loader=_LOADER)  # noqa: S506 - safe
    except UNREADABLE as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        if isinstance(error, (LookupError, AttributeError)):
            why = "a value is not of its tag"
        raise ConfigError(f"cannot read YAML: {why}", where=where, remedy="correct it") from error
