"""Every command that a page shows parses as typed.

`tests/jobs/test_walk.py` runs those of the first page, `test_shown_on_device.py` beside it the
others, and says where fleets', hosts' and services' are run.
"""

from __future__ import annotations

import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest

from tools.pages.commands import commands

ROOT = Path(__file__).resolve().parents[2]
_TOP = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = sorted([*_TOP, *ROOT.glob("docs/*.md"), *ROOT.glob("docs/notes/*.md")])
_BLOCK = re.compile(r"^ *```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"(?<!`)`(edgeladder [^`]+)`(?!`)")
_NO_COMMAND = ("--install-completion", "--show-completion", "--trust-key", "--version")
_LEFT_OUT = ("MissingParameter", "BadOptionUsage", "NoArgsIsHelpError")
KNOWN = commands()


def typed(page: Path) -> list[str]:
    """The command lines in a page's blocks, as they would be typed."""
    blocks = "\n".join(_BLOCK.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    lines = (line.strip().removeprefix("$ ") for line in blocks.splitlines())
    return [line for line in lines if line.startswith("edgeladder ")]


def named(page: Path) -> list[str]:
    """The commands in a page's sentences, which may leave out what they are not about."""
    return [" ".join(found.split()) for found in _WORD.findall(page.read_text(encoding="utf-8"))]


def words(line: str) -> list[str]:
    """The first command of a line, without what a shell does with it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    return list(takewhile(lambda word: set(word) - set("|&;<>"), lexer))[1:]


def parse(given: list[str]) -> None:
    """As the command line would, without doing it."""
    if given == [] or given[0] in _NO_COMMAND:
        return
    name = next((n for n in (" ".join(given[:2]), *given[:1]) if n in KNOWN), None)
    assert name is not None, f"no such command: {given}"
    KNOWN[name].make_context(name, given[len(name.split()) :], resilient_parsing=False)


def placeholder(line: str) -> bool:
    return "..." in line or "COMMAND" in line


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_what_is_typed_parses(page):
    for line in typed(page):
        if not placeholder(line):
            parse(words(line))


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_what_is_named_is_a_command_with_these_options(page):
    for line in named(page):
        if placeholder(line):
            continue
        try:
            parse(words(line))
        except Exception as error:  # typer may carry its own copy of click's
            if type(error).__name__ not in _LEFT_OUT:
                raise
