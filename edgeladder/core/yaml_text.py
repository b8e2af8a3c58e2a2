"""YAML as plain values, for processes to whom pydantic's 20 MB are too much.

What people write is validated in `yaml_config`. PyYAML reads `1e-5` as a string and `no` as False,
so that only records' readers, which coerce what it yields, and a run's own `config.yaml` use this.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from edgeladder.core.errors import ConfigError

# libyaml's parser, where PyYAML was built with it: the same values eight times as fast
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        ConfigError: unreadable, or not YAML.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - safe
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"cannot read YAML: {error}", where=str(path), remedy="correct the file"
        ) from error
