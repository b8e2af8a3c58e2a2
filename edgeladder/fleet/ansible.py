"""Ansible inventories, as they are: YAML or INI, with group_vars/ and host_vars/ beside them.

What ssh needs is taken from Ansible's own variables; what only edgeladder knows may stand beside
them as `edgeladder_budget`, `edgeladder_data` and so on. Everything else is none of our business
and passed over; passwords are passed over with a note, because a fleet takes keys and agents only.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

from edgeladder.core.errors import ConfigError
from edgeladder.fleet.inventory import HostEntry

_TAKEN = {
    "ansible_host": "address",
    "ansible_ssh_host": "address",
    "ansible_user": "user",
    "ansible_ssh_user": "user",
    "ansible_port": "port",
    "ansible_ssh_port": "port",
    "ansible_ssh_private_key_file": "key",
    "ansible_private_key_file": "key",
    "ansible_python_interpreter": "python",
}
_OWN = "edgeladder_"
_OVER_SSH = ("ssh", "smart", "paramiko", "paramiko_ssh")  # localhost often stands there as `local`
_RANGE = re.compile(r"\[([0-9]+|[a-z]):([0-9]+|[a-z])(?::([0-9]+))?\]")


def looks_like(path: Path) -> bool:
    """Whether a file is an Ansible inventory rather than one of ours."""
    if path.suffix not in (".yaml", ".yml"):
        return True  # hosts, hosts.ini: Ansible's habit; ours is always YAML by name
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Tolerant)
    except (yaml.YAMLError, UnicodeDecodeError):
        return False  # the YAML reader says what is wrong
    return (
        isinstance(values, dict)
        and bool(values)
        and all(
            isinstance(group, dict) and set(group) <= {"hosts", "children", "vars"}
            for group in values.values()
        )
        and not {"defaults", "groups"} & set(values)
    )


class _Groups:
    """Groups with their variables, children and hosts, in the order met."""

    def __init__(self) -> None:
        self.variables: dict[str, dict[str, Any]] = {}
        self.children: dict[str, list[str]] = {}
        self.members: dict[str, list[str]] = {}
        self.hosts: dict[str, dict[str, Any]] = {}

    def group(self, name: str) -> None:
        for table in (self.children, self.members):
            table.setdefault(name, [])
        self.variables.setdefault(name, {})

    def host(self, group: str, pattern: str, variables: dict[str, Any]) -> None:
        self.group(group)
        for name in expand(pattern):
            self.hosts.setdefault(name, {}).update(variables)
            if name not in self.members[group]:
                self.members[group].append(name)

    def groups_of(self, host: str) -> list[str]:
        """Groups of a host, parents first, so that nearer ones win."""
        found: list[str] = []

        def climb(name: str, path: tuple[str, ...]) -> None:
            for parent, children in self.children.items():
                if name in children and parent not in path:
                    climb(parent, (*path, parent))
            if name not in found:
                found.append(name)

        for group, members in self.members.items():
            if host in members:
                climb(group, (group,))
        return [name for name in found if name not in ("all", "ungrouped")]


def expand(pattern: str) -> list[str]:
    """Host names of a pattern with ranges: `box[01:03]` is box01, box02, box03."""
    match = _RANGE.search(pattern)
    if not match:
        return [pattern]
    first, last, step = match.groups()
    if first.isdigit():
        numbers = range(int(first), int(last) + 1, int(step or 1))
        middles = [str(number).zfill(len(first)) for number in numbers]
    else:
        middles = [chr(code) for code in range(ord(first), ord(last) + 1, int(step or 1))]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for middle in middles for name in expand(before + middle + after)]


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Our inventory's values out of an Ansible inventory, and notes on what was left aside.

    Raises:
        ConfigError: not an inventory, or a needed value is a template.
    """
    groups = _Groups()
    if path.suffix in (".yaml", ".yml"):
        text = path.read_text(encoding="utf-8")
        for name, group in yaml.load(text, Loader=_Tolerant).items():
            _read_group(groups, name, group or {}, where=str(path))
    else:
        _read_ini(groups, path)
    all_variables = groups.variables.pop("all", {})
    notes: list[str] = []
    values: dict[str, Any] = {
        "defaults": _translate(
            {**all_variables, **_beside(path, "group_vars", "all", notes)}, "all", path, notes
        ),
        "groups": {},
        "hosts": {},
    }
    for name, variables in groups.variables.items():
        if name != "ungrouped":
            merged = {**variables, **_beside(path, "group_vars", name, notes)}
            values["groups"][name] = _translate(merged, name, path, notes)
    for name, variables in groups.hosts.items():
        merged = {**variables, **_beside(path, "host_vars", name, notes)}
        values["hosts"][name] = {
            **_translate(merged, name, path, notes),
            "groups": groups.groups_of(name),
        }
        levels = (all_variables, *(groups.variables[g] for g in groups.groups_of(name)), merged)
        connection = {key: value for level in levels for key, value in level.items()}.get(
            "ansible_connection", "ssh"
        )
        if connection not in _OVER_SSH:
            del values["hosts"][name]
            notes.append(f"{name}: passed over, its ansible_connection is {connection}")
    return values, notes


def _read_group(groups: _Groups, name: str, group: dict[str, Any], *, where: str) -> None:
    groups.group(name)
    groups.variables[name].update(group.get("vars") or {})
    for pattern, variables in (group.get("hosts") or {}).items():
        groups.host(name, str(pattern), variables or {})
    for child, content in (group.get("children") or {}).items():
        groups.children[name].append(child)
        _read_group(groups, child, content or {}, where=where)


def _read_ini(groups: _Groups, path: Path) -> None:
    section, kind = "ungrouped", "hosts"
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = raw.strip()
        if not line or line[0] in "#;":
            continue
        if header := re.fullmatch(r"\[([^\]:]+)(?::(children|vars|hosts))?\]", line):
            section, kind = header.group(1), header.group(2) or "hosts"
            groups.group(section)
            continue
        try:
            if kind == "vars":
                key, _, value = line.partition("=")
                groups.variables[section][key.strip()] = yaml.safe_load(value.strip())
            elif kind == "children":
                groups.group(line)
                groups.children[section].append(line)
            else:
                pattern, *pairs = shlex.split(line, comments=True)
                variables = dict(pair.split("=", 1) for pair in pairs)
                groups.host(section, pattern, variables)
        except ValueError as error:
            raise ConfigError(
                f"line {number} is no inventory line: {error}",
                where=str(path),
                remedy="write our inventory as .yaml, or correct the Ansible one",
            ) from None


def _beside(path: Path, folder: str, name: str, notes: list[str]) -> dict[str, Any]:
    """Variables of group_vars/NAME or host_vars/NAME beside the inventory."""
    base = path.parent / folder
    candidates = [base / name, base / f"{name}.yml", base / f"{name}.yaml"]
    files = [file for file in candidates if file.is_file()]
    if (base / name).is_dir():
        files += sorted(file for file in (base / name).iterdir() if file.is_file())
    found: dict[str, Any] = {}
    for file in files:
        text = file.read_text(encoding="utf-8")
        if text.startswith("$ANSIBLE_VAULT"):
            notes.append(f"{file.name}: encrypted with ansible-vault, passed over")
            continue
        try:
            values = yaml.load(text, Loader=_Tolerant)
        except yaml.YAMLError as error:
            raise ConfigError(
                f"cannot read YAML: {error}", where=str(file), remedy="correct the file"
            ) from error
        if isinstance(values, dict):
            found.update(values)
    return found


class _Tolerant(yaml.SafeLoader):
    """Reads over Ansible's own tags (!vault, !unsafe), whose values we never use."""


_Tolerant.add_multi_constructor("!", lambda loader, suffix, node: None)


def _translate(
    variables: dict[str, Any], name: str, path: Path, notes: list[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in variables.items():
        field = _TAKEN.get(key)
        if field is None and key.startswith(_OWN):
            field = key.removeprefix(_OWN)
        if re.search(r"ansible_.*pass(word|phrase)?$", key):
            notes.append(f"{name}: {key} passed over, keys and agents only")
        if field is None or (field not in HostEntry.model_fields and not key.startswith(_OWN)):
            continue
        if field == "python" and str(value).startswith("auto"):
            continue  # Ansible's own search; python3 is ours
        if isinstance(value, str) and "{{" in value:
            raise ConfigError(
                f"{key} of {name} is a template, which only Ansible can fill in",
                where=str(path),
                remedy=f"give {_OWN}{field} a plain value for it",
            )
        values[field] = value
    jump = _jump(variables, name, path)
    if jump and "jump" not in values:
        values["jump"] = jump
    return values


def _jump(variables: dict[str, Any], name: str, path: Path) -> str | None:
    """The jump host in ansible_ssh_common_args: `-J x`, `-o ProxyJump=x`, or
    `-o ProxyCommand="ssh -W %h:%p x"`.

    Raises:
        ConfigError: another ProxyCommand.
    """
    text = " ".join(
        str(variables.get(key) or "")
        for key in ("ansible_ssh_common_args", "ansible_ssh_extra_args")
    )
    match = re.search(r"(?:-J\s*|ProxyJump[=\s]+)[\"']?([^\s\"',]+)", text)
    if match:
        return match.group(1)
    match = re.search(r"ProxyCommand[=\s]+(?:\"([^\"]+)\"|'([^']+)'|(.+?)['\"]?\s*$)", text)
    if not match:
        return None
    command = next(found for found in match.groups() if found)
    jump = _forwarder(command.split())
    if jump is None:
        raise ConfigError(
            f"the ProxyCommand of {name} is no `ssh -W %h:%p HOST`: {command}",
            where=str(path),
            remedy=f"name the jump host as {_OWN}jump: [user@]address[:port]",
        )
    return jump


def _forwarder(words: list[str]) -> str | None:
    """[user@]host[:port] that `ssh -W %h:%p ...` goes through, or None where it is not that."""
    if not words or words[0].rpartition("/")[2] != "ssh" or "%h:%p" not in " ".join(words):
        return None
    given: dict[str, str] = {}
    hosts = []
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-"):
            hosts.append(word)
        elif word[:2] in ("-W", "-p", "-l", "-i", "-o", "-F", "-c", "-m"):  # with a value
            given[word[1]] = word[2:] or next(rest, "")
    if len(hosts) != 1 or "W" not in given:
        return None
    user = f"{given['l']}@" if given.get("l") and "@" not in hosts[0] else ""
    return user + hosts[0] + (f":{given['p']}" if given.get("p") else "")
