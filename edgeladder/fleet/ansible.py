"""Ansible inventories, as `ansible-inventory --list` reads them.

So every format and precedence of Ansible's holds, group_vars/ and host_vars/ among them.
What ssh needs is taken from Ansible's own variables; what only edgeladder knows may stand beside
them as `edgeladder_budget`, `edgeladder_data` and so on. Everything else is none of our business
and passed over; passwords are passed over with a note, because a fleet takes keys and agents only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from edgeladder.core.errors import ConfigError
from edgeladder.core.plain_files import read_plain_text
from edgeladder.core.yaml_text import UNREADABLE

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
_SETTINGS = {
    "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "true",  # else a warning and no hosts
    "LC_ALL": "C.UTF-8",  # Ansible takes no other encoding
}
_TIMEOUT_SECONDS = 300  # a dynamic inventory may ask a cloud

_DEEPEST = 50  # groups within groups

Values = dict[str, object]


def looks_like(path: Path) -> bool:
    """Whether a file is an Ansible inventory rather than one of ours."""
    if path.suffix not in (".yaml", ".yml"):
        return True  # hosts, hosts.ini: Ansible's habit; ours is always YAML by name
    try:
        values = yaml.load(read_plain_text(path), Loader=_Tolerant)
    except UNREADABLE:
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


class _Tolerant(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # libyaml's, where built with it
    """Reads over Ansible's own tags (!vault, !unsafe): only the keys matter here."""


_Tolerant.add_multi_constructor("!", lambda loader, suffix, node: None)


def read(path: Path) -> tuple[Values, list[str]]:
    """Our inventory's values out of an Ansible inventory, and notes on what was left aside.

    Raises:
        ConfigError: `ansible-inventory` is missing or fails, or a needed value is a template.
    """
    listed = _listed(path)
    meta = listed.pop("_meta", None)
    variables = _object(_object(meta).get("hostvars"))
    groups_of = _groups(listed)
    names = {group for groups in groups_of.values() for group in groups}
    notes: dict[str, None] = {}  # each once, in order
    hosts: Values = {}
    for host, groups in groups_of.items():
        said = _object(variables.get(host))
        connection = str(said.get("ansible_connection", "ssh"))
        if connection in _OVER_SSH:
            hosts[host] = {**_translate(said, host, path, notes), "groups": groups}
        else:
            notes[f"{host}: passed over, its ansible_connection is {connection}"] = None
    return {"groups": {name: {} for name in names}, "hosts": hosts}, list(notes)


def _listed(path: Path) -> Values:
    """What `ansible-inventory --list` prints."""
    beside = str(Path(sys.executable).parent)  # of an environment that is not on the PATH
    found = shutil.which("ansible-inventory") or shutil.which("ansible-inventory", path=beside)
    if found is None:
        raise ConfigError(
            "an Ansible inventory is read by ansible-inventory, which is not installed here",
            where=str(path),
            remedy="pip install ansible-core, or write the inventory in our own YAML "
            "(`edgeladder fleet example`)",
        )
    try:
        done = subprocess.run(
            [found, "--list", "-i", str(path.resolve())],
            env={**os.environ, **_SETTINGS},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
        )
        values = json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, RecursionError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"ansible-inventory gave no list: {type(error).__name__}",
            where=str(path),
            remedy=f"see that `ansible-inventory --list -i {path}` works",
        ) from error
    if not isinstance(values, dict):
        said = [line for line in done.stderr.splitlines() if line.startswith("[ERROR]")]
        reason = (said or done.stderr.splitlines() or ["no reason given"])[0]
        raise ConfigError(
            f"ansible-inventory cannot read it: {reason}",
            where=str(path),
            remedy="correct it, or name the vault's password file in ANSIBLE_VAULT_PASSWORD_FILE"
            if "vault" in reason
            else f"correct it until `ansible-inventory --list -i {path}` works",
        )
    return values


def _groups(listed: Values) -> dict[str, list[str]]:
    """Host -> its groups, parents first; hosts in the inventory's order."""
    found: dict[str, list[str]] = {}

    def walk(group: str, above: list[str], depth: int) -> None:
        if depth > _DEEPEST:
            raise ConfigError(
                f"groups of an Ansible inventory nest {_DEEPEST} deep, or in a circle",
                where=group,
                remedy="no group may be among its own children",
            )
        own = [*above, group] if group not in ("all", "ungrouped") else above
        entry = _object(listed.get(group))
        for host in _words(entry.get("hosts")):
            known = found.setdefault(host, [])
            known += [name for name in own if name not in known]
        for child in _words(entry.get("children")):
            walk(child, own, depth + 1)

    walk("all", [], 0)
    return found


def _object(value: object) -> Values:
    return value if isinstance(value, dict) else {}


def _words(value: object) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else []


def _translate(variables: Values, host: str, path: Path, notes: dict[str, None]) -> Values:
    values: Values = {}
    for key, value in variables.items():
        field = _TAKEN.get(key)
        if field is None and key.startswith(_OWN):
            field = key.removeprefix(_OWN)
        if re.search(r"ansible_.*pass(word|phrase)?$", key):
            notes[f"{key} passed over, keys and agents only"] = None
        if field is None or (field == "python" and str(value).startswith("auto")):
            continue  # not ours, or Ansible's own search for a Python; python3 is ours
        if isinstance(value, dict) and "__ansible_vault" in value:
            notes[f"{host}: {key} is encrypted with ansible-vault, passed over"] = None
            continue
        if isinstance(value, str) and "{{" in value:
            raise ConfigError(
                f"{key} of {host} is a template, which only a play can fill in",
                where=str(path),
                remedy=f"give {_OWN}{field} a plain value for it",
            )
        values[field] = value
    jump = _jump(variables, host, path)
    if jump and "jump" not in values:
        values["jump"] = jump
    return values


def _jump(variables: Values, host: str, path: Path) -> str | None:
    """The jump host in ansible_ssh_common_args.

    Written `-J x`, `-o ProxyJump=x`, or `-o ProxyCommand="ssh -W %h:%p x"`.

    Raises:
        ConfigError: another ProxyCommand.
    """
    keys = ("ansible_ssh_common_args", "ansible_ssh_extra_args")
    text = " ".join(str(variables.get(key) or "") for key in keys)
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
            f"the ProxyCommand of {host} is no `ssh -W %h:%p HOST`: {command}",
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
