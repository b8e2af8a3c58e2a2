"""edgeladder on boxes: a virtual environment of its own, from a registry or a pushed wheelhouse.

Runs as a job, since pip on a small box takes minutes: a broken connection does not stop it. The
new environment is built beside the old one and takes its place by one rename.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

from edgeladder import __version__
from edgeladder.core.errors import ConfigError
from edgeladder.fleet.account import Account
from edgeladder.fleet.crew import Crew
from edgeladder.fleet.inventory import Host
from edgeladder.fleet.push import Tree, push, tree_of
from edgeladder.fleet.remote_jobs import Job, Progress, wait

# $1 environment, $2 link to it, then pip's arguments
_SCRIPT = """
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


def wheelhouse(folder: Path) -> Tree:
    """The wheels of a folder as a tree to push.

    Raises:
        ConfigError: there is no edgeladder wheel in it.
    """
    names = sorted(path.name for path in folder.glob("*.whl")) if folder.is_dir() else []
    if not any(name.startswith("edgeladder-") for name in names):
        raise ConfigError(
            "no edgeladder wheel in the wheelhouse",
            where=str(folder),
            remedy="tools/fleet/wheelhouse makes one for a box's Python and architecture",
        )
    return tree_of("wheelhouse", folder, names)


def install_job(
    host: Host,
    *,
    wheels: Tree | None = None,
    offline: bool = True,
    requirement: str | None = None,
    extras: str = "",
) -> Job:
    """The job that installs edgeladder on a host.

    Args:
        wheels: a pushed wheelhouse; None: everything from the box's registry.
        offline: with a wheelhouse, use nothing else (no registry).
        requirement: instead of this version of edgeladder.
        extras: such as `ort-training`.
    """
    if extras and not re.fullmatch(r"[A-Za-z0-9,-]+", extras):
        raise ConfigError(f"{extras!r} is no list of extras", remedy="write ort-training")
    wanted = requirement or "edgeladder" + (f"[{extras}]" if extras else "")
    if wheels is None and requirement is None:
        wanted += f"=={__version__}"
    arguments = [wanted]
    requires: list[str] = []
    if wheels is not None:
        folder = f"{{root}}/trees/wheelhouse/{wheels.digest}"
        arguments += ["--find-links", folder, *(["--no-index"] if offline else [])]
        requires.append(folder)
    text = json.dumps([host.python, arguments])
    mark = hashlib.sha256(text.encode()).hexdigest()[:12]
    command = ["/bin/sh", "-c", _SCRIPT, "install", host.python, f"{{root}}/venvs/{mark}"]
    return Job(f"install-{mark}", [*command, "{root}/venv", *arguments], requires=requires)


async def install(
    crew: Crew,
    jobs: dict[str, Job],
    wheels: Tree | None,
    *,
    patience_seconds: float = 600.0,
    poll_seconds: float = 2.0,
    watch: Callable[[dict[str, Progress]], None] = lambda known: None,
) -> Account:
    """Push the wheelhouse where there is one, then run the jobs to their ends."""
    if wheels is not None:
        pushed = await crew.each("push", lambda box: push(box, wheels, switch=False))
    else:
        pushed = Account("push", [])
    results = {result.host: result for result in pushed.results if result.state == "failed"}
    hosts = [host for host in crew.hosts if host.name not in results]
    by_id: dict[str, list[Host]] = {}
    for host in hosts:  # hosts with different interpreters have different jobs
        by_id.setdefault(jobs[host.name].id, []).append(host)
    for same in by_id.values():
        part = dataclasses.replace(crew, hosts=same)
        account = await wait(
            part,
            {host.name: jobs[host.name] for host in same},
            poll_seconds=poll_seconds,
            patience_seconds=patience_seconds,
            watch=watch,
        )
        results.update({result.host: result for result in account.results})
    return Account("install", [results[host.name] for host in crew.hosts])
