"""The commands page from the commands themselves: what each does, an example, its options."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import typer

from edgeladder.cli import app as application
from edgeladder.cli import fleet_commands
from edgeladder.cli.command import GROUPS

_ALSO = ("--help", "--json", "--quiet", "--verbose")  # said once, above all commands
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}


def commands() -> dict[str, Any]:
    """Commands and groups by their words (`runs`, `runs pin`), in the order of `--help`."""
    found: dict[str, Any] = {}
    root = typer.main.get_command(application.app)
    fleet = typer.main.get_command(fleet_commands.app)
    for name, command in {**root.commands, "fleet": fleet}.items():  # type: ignore[attr-defined]  # the root is a group
        found[name] = command
        children = getattr(command, "commands", {})
        found |= {f"{name} {child}": item for child, item in children.items()}
    return found


def text() -> str:
    """A section a command: its docstring, its examples, a table of arguments and options."""
    parts = []
    for words, command in commands().items():
        children = getattr(command, "commands", {})
        # a group that does something by itself, where none of its commands is for that
        if not children or (command.invoke_without_command and "list" not in children):
            parts.append(_section(words, command))
    return "\n\n".join(parts)


def _section(words: str, command: Any) -> str:
    told = [" ".join(part.split()) for part in inspect.cleandoc(command.help or "").split("\n\n")]
    parts = [f"### {words}", *(part for part in told if part)]
    is_group = hasattr(command, "commands")
    if examples := [f"edgeladder {words}"] if is_group else command.examples(words):
        parts.append("```\n" + "\n".join(examples) + "\n```")
    rows = list(_rows(command))
    if rows:
        parts.append("\n".join(["| | |", "|---|---|", *rows]))
    return "\n\n".join(parts)


def _rows(command: Any) -> Iterator[str]:
    """Arguments, then options in the order of their groups in the help."""
    order = ["", *GROUPS, "Options"]
    found = []
    for parameter in command.params:
        names = [*parameter.opts, *parameter.secondary_opts]
        if parameter.opts[0] in _ALSO or getattr(parameter, "hidden", False):
            continue
        argument = parameter.param_type_name == "argument"
        group = "" if argument else _GROUP_OF.get(names[0], "Options")
        shown = (parameter.metavar or parameter.name.upper()) if argument else ", ".join(names)
        found.append((order.index(group), f"| `{shown}` | {_told(parameter)} |"))
    yield from (row for _, row in sorted(found, key=lambda item: item[0]))


def _told(parameter: Any) -> str:
    """The help with the default, where the help does not say it in brackets itself."""
    words = (getattr(parameter, "help", None) or "").rstrip()
    default = parameter.default
    plain = default is not None and not callable(default) and not isinstance(default, bool)
    if plain and default not in ((), [], "") and "[" not in words:
        words = f"{words} [{default}]"
    if variable := getattr(parameter, "envvar", None):
        words = f"{words} [`{variable}`]"
    return words.replace("|", "\\|")
