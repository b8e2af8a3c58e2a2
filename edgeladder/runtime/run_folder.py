"""What a run directory remembers of how it was made: its request and its bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeladder.core.bundle import Bundle
from edgeladder.core.errors import ConfigError
from edgeladder.core.files import read_json


def run_request(run: Path) -> dict[str, Any]:
    """What a run was asked to do, by its config.yaml; empty for a bare adapter."""
    from edgeladder.core.yaml_text import read_yaml  # a prediction does without

    config = run / "config.yaml"
    values = read_yaml(config) if config.is_file() else {}
    request = values.get("request") if isinstance(values, dict) else None
    return dict(request) if isinstance(request, dict) else {}


def run_bundle(run: Path) -> Path:
    """The bundle a run was trained on, as the run remembers it.

    Raises:
        ConfigError: it remembers none, or none is there any more.
    """
    remembered = _environment_bundle(run)
    if remembered is not None:
        return remembered
    named = run_request(run).get("bundle")
    if not isinstance(named, str):  # a damaged one, if it is there at all
        named = None
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
