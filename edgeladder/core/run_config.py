"""`config.yaml` and `environment.json` of a run: what was resolved, and where it ran."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from edgeladder.core.config import DeviceProfile, Profile
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import write_text
from edgeladder.core.old_words import modern_profile
from edgeladder.core.plan import MachineBaseline
from edgeladder.core.records import from_json, to_json
from edgeladder.core.request import TrainRequest
from edgeladder.core.yaml_text import read_yaml


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The resolved configuration of a run: what a person reads and what `--resume` continues."""

    request: TrainRequest
    profile: Profile
    device: DeviceProfile | None
    bundle_digest: str
    engine: str
    seed: int
    steps: int
    batch: int
    classes: list[str]
    class_names: list[str]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine and the versions a run was made with."""

    edgeladder: str
    python: str
    executable: str
    platform: str
    machine: str
    cores: int | None
    memory_total_bytes: int
    memory_available_bytes: int | None
    bundle: str
    bundle_digest: str
    engine: str
    threads: int
    baseline: MachineBaseline
    versions: dict[str, str] = field(default_factory=dict)


def write_config(path: Path, config: RunConfig) -> None:
    """Write `config.yaml`, plain YAML in the order of the fields.

    Raises:
        StorageError: the disk is full.
    """
    write_text(path, yaml.safe_dump(to_json(config), sort_keys=False, allow_unicode=True))


def read_config(path: Path) -> RunConfig:
    """Read `config.yaml`; runs of version 0.1 are read as well.

    Raises:
        ConfigError: there is none, or it is not YAML.
        IntegrityError: it lacks something.
    """
    try:
        values = read_yaml(path)
    except ConfigError as error:
        raise ConfigError(
            f"cannot read the run's configuration: {error.message}",
            where=str(path),
            remedy="name the folder of a run",
        ) from error
    if not isinstance(values, dict):
        raise IntegrityError("not a run's configuration", where=str(path), remedy="start a new run")
    values = {**values, "profile": modern_profile(values.get("profile"))}
    return from_json(RunConfig, values, where=str(path), others_keys=True)
