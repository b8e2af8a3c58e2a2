"""The inventory: which boxes there are and how each is reached, in YAML or as Ansible has it.

    defaults: {user: pi, key: ~/.ssh/fleet, budget: 1GB}
    groups:
      farm: {device: raspberry-pi-5, jump: gate}
    hosts:
      gate: {address: gate.example.org, tags: [jump]}
      barn-1: {address: 10.0.0.11, groups: [farm], data: ~/pictures}

A host's values win over its groups' (later groups over earlier ones), those over the defaults.
"""

from __future__ import annotations

import fnmatch
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from edgeladder.core.errors import ConfigError
from edgeladder.core.sizes import parse_size
from edgeladder.core.spelling import nearest
from edgeladder.core.trusted_keys import PublicKey, read_keys
from edgeladder.core.yaml_config import StrictModel, validate
from edgeladder.core.yaml_text import read_yaml
from edgeladder.fleet import ansible

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")


def check_name(name: str) -> str:
    """A name that is also safe as a file name and as part of a job id.

    Raises:
        ValueError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r}: use letters, digits, dot, dash and underscore")
    return name


def _size(text: str | int | None) -> str | int | None:
    if text is not None:
        try:
            parse_size(text)
        except ConfigError as error:
            raise ValueError(error.message) from None
    return text


def _remote_folder(path: str) -> str:
    if not path.startswith(("/", "~/", "{root}")) or ".." in path.split("/"):
        raise ValueError(f"{path!r}: a folder of the box starts with / or ~/")
    return path


Name = Annotated[str, AfterValidator(check_name)]
Size = Annotated[str | int | None, AfterValidator(_size)]
RemoteFolder = Annotated[str, AfterValidator(_remote_folder)]


def _beside(inventory: Path, name: str | None) -> Path | None:
    """A file that the inventory names; a relative name starts at its folder."""
    return None if name is None else inventory.parent / os.path.expanduser(name)


class HostVars(StrictModel):
    """What may stand for a host, a group or as a default; None: not said here."""

    address: str | None = None
    user: str | None = None
    port: int | None = Field(default=None, ge=1, le=65535)
    key: str | None = None  # private key file; without it ssh-agent and ~/.ssh/id_*
    jump: str | None = None  # another host of the inventory, or [user@]address[:port]
    device: Name | None = None  # a device profile's name
    budget: Size = None
    root: RemoteFolder | None = None
    data: RemoteFolder | None = None
    python: str | None = None  # the box's interpreter
    program: RemoteFolder | None = None  # its `edgeladder`
    tags: list[Name] | None = None


class HostEntry(HostVars):
    """A host as written: its values and groups."""

    groups: list[Name] = []


class InventoryFile(StrictModel):
    """The YAML file."""

    defaults: HostVars = HostVars()
    groups: dict[Name, HostVars] = {}
    hosts: dict[Name, HostEntry] = Field(min_length=1)
    known_hosts: str | None = None  # file of pinned keys; default: beside the inventory
    trusted_keys: str | None = None  # file of publishers' keys: bundles of others are refused
    signing_key: str | None = None  # private key that signs averages, which no publisher made

    @model_validator(mode="before")
    @classmethod
    def _short_hosts(cls, values: Any) -> Any:
        """`box: 10.0.0.1` and a bare `box:` stand for a host with that address."""
        if isinstance(values, dict) and isinstance(values.get("hosts"), dict):
            hosts = {
                name: {"address": entry} if isinstance(entry, str) else (entry or {})
                for name, entry in values["hosts"].items()
            }
            return {**values, "hosts": hosts}
        return values

    @model_validator(mode="after")
    def _known_groups(self) -> InventoryFile:
        for name, entry in self.hosts.items():
            for group in entry.groups:
                if group not in self.groups:
                    guess = nearest(group, self.groups)
                    hint = f", did you mean {guess!r}?" if guess else ""
                    raise ValueError(f"host {name}: unknown group {group!r}{hint}")
        return self


@dataclass(frozen=True)
class Host:
    """One box, every value settled."""

    name: str
    address: str
    user: str | None = None  # None: the name of who runs the command
    port: int = 22
    key: str | None = None
    jump: str | None = None
    device: str | None = None
    budget: str | int | None = None
    root: str = "~/edgeladder"  # all that edgeladder keeps on the box
    data: str = "{root}/data"  # the box's own pictures, or those of `fleet push --data`
    python: str = "python3"
    program: str = "{root}/venv/bin/edgeladder"  # `fleet install` puts it there
    tags: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    trusted_keys: tuple[str, ...] = ()  # of publishers, as OpenSSH writes keys


class Inventory:
    """The hosts of a fleet, in the file's order."""

    def __init__(
        self,
        hosts: list[Host],
        known_hosts: Path,
        notes: list[str] | None = None,
        *,
        trusted_keys: list[PublicKey] | None = None,
        signing_key: Path | None = None,
    ):
        self.hosts = hosts
        self.known_hosts = known_hosts
        self.notes = notes or []  # what of an Ansible inventory was left aside
        self.trusted_keys = trusted_keys or []  # empty: the fleet pins no publisher
        self.signing_key = signing_key

    @classmethod
    def open(cls, path: str | Path) -> Inventory:
        """Read an inventory of ours or an Ansible one (YAML or INI).

        Raises:
            ConfigError: absent, unreadable or invalid; every error at once.
        """
        path = Path(path)
        if not path.is_file():
            raise ConfigError(
                "no inventory here",
                where=str(path),
                remedy="write one (`edgeladder fleet example` prints a start) or name one with "
                "--inventory",
            )
        values, notes = ansible.read(path) if ansible.looks_like(path) else (read_yaml(path), [])
        parsed = validate(InventoryFile, values, where=str(path))
        hosts = [_settle(name, entry, parsed) for name, entry in parsed.hosts.items()]
        _check_jumps(hosts, where=str(path))
        pinned = os.path.expanduser(parsed.known_hosts or "known_hosts")
        keys = _beside(path, parsed.trusted_keys)
        trusted = read_keys(keys) if keys is not None else []
        lines = tuple(key.line for key in trusted)
        return cls(
            [replace(host, trusted_keys=lines) for host in hosts],
            path.parent / pinned,
            notes,
            trusted_keys=trusted,
            signing_key=_beside(path, parsed.signing_key),
        )

    def host(self, name: str) -> Host | None:
        """The host of that name, or None."""
        return next((host for host in self.hosts if host.name == name), None)

    def limit(self, patterns: str | None) -> list[Host]:
        """Hosts that a comma-separated list of names, groups, tags and globs picks.

        `!x` takes away; a list of only such begins from all.

        Raises:
            ConfigError: a pattern picks nothing (the nearest name is suggested).
        """
        parts = [part.strip() for part in (patterns or "").split(",") if part.strip()]
        chosen: set[str] = set()
        if all(part.startswith("!") for part in parts):
            chosen = {host.name for host in self.hosts}
        for part in parts:
            pattern = part.removeprefix("!")
            found = {host.name for host in self.hosts if _matches(host, pattern)}
            if not found:
                known = {name for host in self.hosts for name in _labels(host)}
                guess = nearest(pattern, known)
                raise ConfigError(
                    f"{pattern!r} is no host, group or tag",
                    where="--limit",
                    remedy=f"did you mean {guess!r}?" if guess else "see the inventory",
                )
            chosen = chosen - found if part.startswith("!") else chosen | found
        return [host for host in self.hosts if host.name in chosen]


def _labels(host: Host) -> list[str]:
    return [host.name, *host.groups, *host.tags, "all"]


def _matches(host: Host, pattern: str) -> bool:
    return any(fnmatch.fnmatchcase(label, pattern) for label in _labels(host))


def _settle(name: str, entry: HostEntry, parsed: InventoryFile) -> Host:
    levels = (parsed.defaults, *(parsed.groups[group] for group in entry.groups), entry)
    said: dict[str, Any] = {"name": name, "address": name}  # a checked level's, by Host's names
    tags: dict[str, None] = {}  # of all levels, each once
    for level in levels:
        said.update(level.model_dump(exclude_none=True, exclude={"groups", "tags"}))
        tags.update(dict.fromkeys(level.tags or []))
    return Host(**said, tags=tuple(tags), groups=tuple(entry.groups))


def _check_jumps(hosts: list[Host], *, where: str) -> None:
    names = {host.name: host for host in hosts}
    for host in hosts:
        seen = [host.name]
        jump = host.jump
        while jump is not None and jump in names:
            if jump in seen:
                raise ConfigError(
                    f"jump hosts go in a circle: {' -> '.join([*seen, jump])}",
                    where=where,
                    remedy="give one of them no `jump`",
                )
            seen.append(jump)
            jump = names[jump].jump


def jump_host(jump: str, inventory: Inventory, host: Host) -> Host:
    """The host to jump through: of the inventory by name, else `[user@]address[:port]`.

    Raises:
        ConfigError: not an address.
    """
    known = inventory.host(jump)
    if known is not None:
        return known
    match = re.fullmatch(r"(?:([^@\s]+)@)?([A-Za-z0-9.:_-]+?)(?::(\d+))?", jump)
    if not match:
        raise ConfigError(
            f"{jump!r} is no jump host",
            where=host.name,
            remedy="name a host of the inventory or write [user@]address[:port]",
        )
    user, address, port = match.groups()
    return Host(
        name=re.sub(r"[^A-Za-z0-9._-]", "-", address),
        address=address,
        user=user or host.user,
        port=int(port or 22),
        key=host.key,
    )
