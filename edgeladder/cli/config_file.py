"""Options from a file: `edgeladder.yaml` here, or what EDGELADDER_CONFIG names.

    budget: 160MB          an option of every command that has it
    data: pictures
    train:                 options of one command
      shots: 16
      set: [train.steps=200]
    cache prune:
      views: 4

The command line comes first, then the environment, then a command's own section, then what stands
at the top. Nothing is read, and no YAML imported, where there is no such file.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeladder.cli.lazy import LAZY
from edgeladder.core.errors import ConfigError
from edgeladder.core.spelling import nearest

FILE, VARIABLE = "edgeladder.yaml", "EDGELADDER_CONFIG"
_NEVER = ("help", "json", "version")  # what a program relies on is said where it calls
_REMEDY = "docs/everyday.md shows what the file may hold"


def config_file() -> Path | None:
    """The file that is meant; None where there is none.

    Raises:
        ConfigError: the environment names one that is not there.
    """
    named = os.environ.get(VARIABLE)
    if named:
        if not Path(named).is_file():
            raise ConfigError(
                f"no file at {named}", where=VARIABLE, remedy=f"correct or unset {VARIABLE}"
            )
        return Path(named)
    return Path(FILE) if Path(FILE).is_file() else None


def defaults(root: Any, words: Sequence[str], everything: Any) -> dict[str, Any]:
    """The file's options as click takes defaults, for the command that the words name.

    Args:
        root: the command line, perhaps with that one command only.
        words: as they were typed.
        everything: makes the command line with all commands; asked only about a strange word.

    Raises:
        ConfigError: a key that no command has, or a value that is none.
    """
    path = config_file()
    if path is None:
        return {}
    from edgeladder.core.yaml_text import read_yaml  # a command without a file does without

    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise ConfigError("not options and their values", where=str(path), remedy=_REMEDY)
    names, command = _found(root, words)
    known = _options(command)
    own = values.get(" ".join(names))
    shared = {key: value for key, value in values.items() if not isinstance(value, dict)}
    lazy = [name for name in LAZY if name not in names[:1]]
    _check(values, shared, known, path, everything, lazy)
    if own is not None and not isinstance(own, dict):
        raise ConfigError(f"{' '.join(names)} is no section", where=str(path), remedy=_REMEDY)
    chosen = {key: value for key, value in shared.items() if key in known}
    for key, value in (own or {}).items():
        if key not in known:
            raise ConfigError(
                f"{' '.join(names)} has no option --{key}{_or(nearest(str(key), known))}",
                where=str(path),
                remedy=_REMEDY,
            )
        chosen[key] = value
    found: dict[str, Any] = {known[key]: _plain(key, value, path) for key, value in chosen.items()}
    for name in reversed(names):
        # a group's options stand beside the commands that it has
        found = {name: found}
    return found


def _found(root: Any, words: Sequence[str]) -> tuple[list[str], Any]:
    """The command that words name, and its path: groups may run by themselves."""
    names: list[str] = []
    command = root
    for word in words:
        inside = command.get_command(None, word) if hasattr(command, "get_command") else None
        if inside is None:
            break
        names.append(word)
        command = inside
    return names, command


def _options(command: Any) -> dict[str, str]:
    """Long option names without their dashes -> what the command calls them."""
    return {
        option.removeprefix("--"): item.name
        for item in command.params
        for option in item.opts
        if option.startswith("--") and option.removeprefix("--") not in _NEVER
    }


def _check(
    values: Mapping[Any, Any],
    shared: Mapping[Any, Any],
    known: Mapping[str, str],
    path: Path,
    everything: Any,
    lazy: Collection[str],
) -> None:
    """Refuse keys that mean nothing to any command; `lazy`: groups that need not be loaded."""
    strange = [str(key) for key in shared if key not in known]
    strange += [str(key) for key in values if key not in shared]
    if not strange:
        return
    light = everything()
    commands = dict(_all(light, (), lazy))
    for key in strange:
        section = isinstance(values.get(key), dict)
        if section and key.split(" ")[0] in lazy:
            continue  # judged by those commands themselves: they need not be loaded for others
        if key in (commands if section else _every_option(commands)):
            continue
        commands = dict(_all(light, ()))
        known_there = commands if section else _every_option(commands)
        if key not in known_there:
            what = "command" if section else "option"
            guess = nearest(key, known_there)
            raise ConfigError(
                f"there is no {what} {key!r}{_or(guess)}", where=str(path), remedy=_REMEDY
            )


def _every_option(commands: Mapping[str, Any]) -> set[str]:
    return {name for command in commands.values() for name in _options(command)}


def _all(
    command: Any, names: tuple[str, ...], without: Collection[str] = ()
) -> list[tuple[str, Any]]:
    """Every command by its words, but for some of the first ones."""
    found = [(" ".join(names), command)] if names else []
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            if names or name not in without:
                found += _all(command.get_command(None, name), (*names, name))
    return found


def _plain(key: str, value: Any, path: Path) -> Any:
    """A value as the command line would have it."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and all(isinstance(item, (str, int, float)) for item in value):
        return [str(item) for item in value]
    raise ConfigError(f"{key} is no value of an option", where=str(path), remedy=_REMEDY)


def _or(guess: str | None) -> str:
    return f", did you mean {guess!r}?" if guess else ""
