"""What a run directory remembers of how it was made: its request and its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import read_json

# what is read of a run's request by whoever opens the run
_KINDS = {"bundle": str, "data": str, "cache": str, "cache_dtype": str, "shots": int, "seed": int}


def run_request(run: Path) -> dict[str, Any]:
    """What a run was asked to do, by its config.yaml; empty for a bare adapter.

    Raises:
        ConfigError: it is not YAML.
        IntegrityError: what is read of it is of another kind.
    """
    from edgeladder.core.yaml_text import read_yaml  # a prediction does without

    config = run / "config.yaml"
    values = read_yaml(config) if config.is_file() else {}
    request = values.get("request") if isinstance(values, dict) else None
    if not isinstance(request, dict):
        return {}
    for key, kind in _KINDS.items():
        found = request.get(key)
        if found is not None and (not isinstance(found, kind) or isinstance(found, bool)):
            raise IntegrityError(
                f"the run's {key} is no {'text' if kind is str else 'number'}",
                where=str(config),
                remedy="copy the run again from where it was trained, or train again",
            )
    return dict(request)


def run_bundle(run: Path) -> Path:
    """The bundle a run was trained on, as the run remembers it.

    Raises:
        ConfigError: it remembers none, or none is there any more.
    """
    remembered = _environment_bundle(run)
    if remembered is not None:
        return remembered
    named = run_request(run).get("bundle")
    for path in (Path(named), run / named) if named else ():
        if path.exists():
            return path
    raise ConfigError(
        f"the run's bundle is not at {named}" if named else "the run names no bundle",
        where=str(run),
        remedy="name it with --bundle",
    )


def _environment_bundle(run: Path) -> Path | None:
    """The bundle by environment.json, which holds the whole path and needs no YAML to read."""
    try:
        named = read_json(run / "environment.json")["bundle"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(named) if isinstance(named, str) and Path(named).exists() else None


def open_bundle(run: Path, bundle: Bundle | Path | None) -> Bundle:
    """The bundle given, or the run's own."""
    if isinstance(bundle, Bundle):
        return bundle
    return Bundle.open(bundle if bundle is not None else run_bundle(run), graphs="when used")
