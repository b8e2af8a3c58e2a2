"""Requests as the commands a person would type: to go on with a run, or to repeat one.

Standard library only: a supervisor names these, and it counts inside the budget.
"""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path

from edgeladder.core.request import TrainRequest
from edgeladder.core.shipped import NANO, NANO_BUNDLE
from edgeladder.core.sizes import exact_size

_OPTIONS = {  # field of a request -> option of `edgeladder train`, in the order they are told
    "bundle": "--bundle",
    "data": "--data",
    "cache": "--cache",
    "device": "--device",
    "budget_bytes": "--budget",
    "profile": "--profile",
    "overrides": "--set",
    "shots": "--shots",
    "engine": "--engine",
    "seed": "--seed",
    "cache_dtype": "--dtype",
    "start": "--start",
}
_ALWAYS = ("data", "budget_bytes", "seed")  # told even where they are a default


def command(*words: str | Path) -> str:
    """A command of `edgeladder`, quoted for a shell."""
    return shlex.join(["edgeladder", *map(str, words)])


def resume_command(run: str | Path) -> str:
    """The command that goes on with a run."""
    return command("train", "--resume", run)


def train_command(request: TrainRequest) -> str:
    """The command that repeats a training, in a run directory of its own.

    Sizes are exact, `600MB` or whole bytes.
    """
    defaults = {item.name: item.default for item in fields(TrainRequest)}
    words, options = ["train"], _OPTIONS
    if request.condense:
        words = ["condense", "--run", request.condense]
        options = {name: _OPTIONS[name] for name in ("device", "budget_bytes", "overrides")}
    for name, option in options.items():
        value = getattr(request, name)
        if value is None or (value == defaults[name] and name not in _ALWAYS):
            continue
        if name == "bundle" and Path(str(value)) == NANO_BUNDLE:
            value = NANO
        if name == "budget_bytes":
            value = exact_size(value)
        for item in value if isinstance(value, list) else [value]:
            words += [option, str(item)]
    return command(*words)
