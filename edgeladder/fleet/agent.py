"""The program that a box runs for us: the sources of `box/`, packed, and the line that starts it.

Every call carries it (a few kilobytes), so that a box needs a Python and nothing of ours, and
never has an old version of it.
"""

from __future__ import annotations

import functools
import shlex
import zlib
from pathlib import Path

_MODULES = ("records", "store", "commands", "jobs", "probe", "prune", "serve")  # as they import

_BOOTSTRAP = (
    "import sys,zlib;b=sys.stdin.buffer;"
    "exec(compile(zlib.decompress(b.read(int(b.readline()))),'agent','exec'))"
)

# Makes the agent's modules importable by their own names on a box that has no edgeladder.
_LOADER = """
import sys, types
for _name in ("edgeladder", "edgeladder.fleet", "edgeladder.fleet.box"):
    _module = types.ModuleType(_name)
    _module.__path__ = []
    sys.modules[_name] = _module
for _name, _source in {modules!r}:
    _module = types.ModuleType(_name)
    sys.modules[_name] = _module
    setattr(sys.modules["edgeladder.fleet.box"], _name.rpartition(".")[2], _module)
    exec(compile(_source, _name, "exec"), _module.__dict__)
sys.modules["edgeladder.fleet.box.serve"].main()
"""


@functools.cache
def agent() -> bytes:
    """The agent's compressed program, with its length in front."""
    folder = Path(__file__).parent / "box"
    modules = [
        (f"edgeladder.fleet.box.{name}", (folder / f"{name}.py").read_text(encoding="utf-8"))
        for name in _MODULES
    ]
    program = zlib.compress(_LOADER.replace("{modules!r}", repr(modules)).encode(), 9)
    return f"{len(program)}\n".encode() + program


def command(python: str) -> str:
    """What a box's shell is asked to run: its interpreter, waiting for the agent on stdin."""
    return f'{_word(python)} -IS -c "{_BOOTSTRAP}"'  # it holds neither double quotes nor dollars


def _word(path: str) -> str:
    """A path for the box's shell; `~/` stays for it to expand."""
    home = path.startswith("~/")
    return ("~/" if home else "") + shlex.quote(path.removeprefix("~/") if home else path)
