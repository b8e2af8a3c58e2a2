"""The commands that a box runs: our own, by name, with arguments of checked kinds.

What a job prints becomes its result.json, which may leave the box. So no request carries a command
line: the box builds it here from a `TrainTask`, an `EvaluateTask` or an `InstallTask`, and refuses
an argument that could name another program, another option or a file to be shown.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeladder.fleet.box.records import EvaluateTask, InstallTask, TrainTask
from edgeladder.fleet.box.store import Refused, tree_path

if TYPE_CHECKING:
    from edgeladder.fleet.box.records import Task

ENGINES = ("auto", "stock", "ort-training")
_BRING = "`edgeladder fleet install` and `edgeladder fleet push` bring it"
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}(?<!\.yaml)(?<!\.yml)"  # a shipped one, no file
_PUBLIC_KEY = r"ssh-ed25519 [A-Za-z0-9+/]{68}"  # no file
_PUSHED = ("trees", "blobs", "jobs")  # what the controller can write below the root

# $1 interpreter, $2 environment, $3 link to it, then pip's arguments
_INSTALL = """
set -e
python=$1 venv=$2 link=$3
shift 3
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-input -q "$@" >&2
"$venv/bin/python" -c 'import edgeladder, onnxruntime' >&2
"$venv/bin/python" - <<'END'
import json
from importlib import metadata
names = ("edgeladder", "onnxruntime", "onnxruntime-training-cpu")
found = {}
for name in names:
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps({"installed": found}))
END
if [ -e "$link" ] && [ ! -L "$link" ]; then
  echo "$link is there and is no link of edgeladder's: move it away" >&2
  exit 5
fi
ln -sfn "$venv" "$link.tmp"
mv -T "$link.tmp" "$link"
"""


@dataclass(frozen=True)
class Command:
    """A command line; `{root}` and `{job}` in it are the box's folders."""

    words: tuple[str, ...]
    requires: tuple[str, ...]  # paths that must be there
    remedy: str | None = None  # when one is not
    resume: tuple[str, ...] | None = None  # for a later attempt, once the run has begun


def command_of(task: Task, root: str) -> Command:
    """The command line of a task.

    Raises:
        Refused: an argument is not of its kind.
    """
    if isinstance(task, TrainTask):
        return _train(task, root)
    if isinstance(task, EvaluateTask):
        return _evaluate(task, root)
    return _install(task, root)


def fill(part: str, root: str, folder: str) -> str:
    """An argument with this box's folders in it."""
    part = os.path.expanduser(part) if part.startswith("~/") else part
    return part.replace("{root}", root).replace("{job}", folder)


def check_program(path: str, root: str, pattern: str = "edgeladder") -> str:
    """A program of that name that nobody pushed here.

    Raises:
        Refused: another name, or a file that the controller can write.
    """
    place = os.path.realpath(fill(_path(path, "program"), root, ""))
    pushed = [os.path.realpath(os.path.join(root, name)) + os.sep for name in _PUSHED]
    if not re.fullmatch(pattern, os.path.basename(path)) or place.startswith(tuple(pushed)):
        raise Refused(
            f"{path!r} is no {pattern.split('[')[0]} that a box may run",
            remedy="name the box's own in the inventory",
        )
    return path


def _path(path: str, what: str) -> str:
    if not path.startswith(("/", "~/", "{root}/")) or ".." in path.split("/") or "\n" in path:
        raise Refused(f"{what} {path!r} is no absolute path", remedy="begin it with / or ~/")
    return path


def _checked(value: str | None, pattern: str, what: str) -> str | None:
    if value is not None and not re.fullmatch(pattern, value):
        raise Refused(
            f"{what} {value!r} is not one that a box takes",
            remedy="a box takes names of shipped devices and profiles, sizes, and --set A.B=C",
        )
    return value


def _trust(keys: tuple[str, ...]) -> list[str]:
    words = []
    for key in keys:
        words += ["--trust-key", _checked(key, _PUBLIC_KEY, "trusted key") or ""]
    return words


def _tree(kind: str, digest: str, root: str) -> str:
    tree_path(root, kind, digest)  # refuses what is no digest
    return f"{{root}}/trees/{kind}/{digest}"


def _train(task: TrainTask, root: str) -> Command:
    options = task.options
    program = check_program(task.program, root)
    bundle = _tree("bundle", options.bundle_digest, root)
    start = _tree("adapter", options.adapter_digest, root) if options.adapter_digest else None
    if options.engine not in (None, *ENGINES):
        raise Refused(f"engine {options.engine!r} is none of {', '.join(ENGINES)}")
    words = [program, *_trust(task.trusted_keys), "train", "--json", "--bundle", bundle]
    words += ["--data", _path(task.data, "data"), "--cache", "{root}/cache"]
    for name, value in (
        ("--device", _checked(task.device, _NAME, "device")),
        ("--budget", _checked(task.budget, r"[0-9]+(\.[0-9]+)? ?[A-Za-z]{0,3}", "budget")),
        ("--profile", _checked(options.profile, _NAME, "profile")),
        ("--shots", options.shots),
        ("--seed", options.seed),
        ("--engine", options.engine),
        ("--start", start),
    ):
        words += [] if value is None else [name, str(value)]
    for assignment in options.overrides:
        _checked(assignment, r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*=.*", "setting")
        words += ["--set", assignment]
    return Command(
        (*words, "--run", "{job}/run"),
        tuple(path for path in (program, start, bundle) if path),
        _BRING,
        resume=(*words, "--resume", "{job}/run"),
    )


def _evaluate(task: EvaluateTask, root: str) -> Command:
    program = check_program(task.program, root)
    bundle = _tree("bundle", task.bundle_digest, root)
    adapter = _tree("adapter", task.adapter_digest, root)
    words = [program, *_trust(task.trusted_keys), "evaluate", "--json"]
    words += ["--bundle", bundle, "--run", adapter]
    words += ["--data", _path(task.data, "data"), "--cache", "{root}/cache"]
    return Command(tuple(words), (program, adapter, bundle), _BRING)


def _install(task: InstallTask, root: str) -> Command:
    if "/" in task.python:
        check_program(task.python, root, r"python[0-9.]*")
    else:
        _checked(task.python, r"python[0-9.]*", "interpreter")
    _checked(task.extras, r"[A-Za-z0-9,-]*", "list of extras")
    _checked(task.version, r"[0-9][A-Za-z0-9.+!]*", "version")
    wanted = "edgeladder" + (f"[{task.extras}]" if task.extras else "")
    arguments = [wanted + (f"=={task.version}" if task.version else "")]
    requires = []
    if task.wheelhouse_digest is not None:
        folder = _tree("wheelhouse", task.wheelhouse_digest, root)
        arguments += ["--find-links", folder] + (["--no-index"] if task.offline else [])
        requires.append(folder)
    venv = f"{{root}}/venvs/{install_mark(task)}"
    words = ("/bin/sh", "-c", _INSTALL, "install", task.python, venv, "{root}/venv", *arguments)
    return Command(words, tuple(requires), "`edgeladder fleet install` pushes it")


def install_mark(task: InstallTask) -> str:
    """A name that is the same for the same installation."""
    text = json.dumps(
        [task.python, task.version, task.extras, task.wheelhouse_digest, task.offline]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:12]
