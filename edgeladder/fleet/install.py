"""edgeladder on boxes: a virtual environment of its own, from a registry or a pushed wheelhouse.

Runs as a job, since pip on a small box takes minutes: a broken connection does not stop it. The
new environment is built beside the old one and takes its place by one rename.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from edgeladder import __version__
from edgeladder.core.errors import ConfigError
from edgeladder.fleet.box.commands import install_mark
from edgeladder.fleet.box.records import InstallTask
from edgeladder.fleet.host_pool import HostPool
from edgeladder.fleet.inventory import Host
from edgeladder.fleet.outcomes import FleetOutcome
from edgeladder.fleet.push import Tree, push, tree_of
from edgeladder.fleet.remote_jobs import Job, Waiting, wait


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
    host: Host, *, wheels: Tree | None = None, offline: bool = True, extras: str = ""
) -> Job:
    """The job that installs edgeladder on a host.

    Args:
        wheels: a pushed wheelhouse; None: this version, from the box's registry.
        offline: with a wheelhouse, use nothing else (no registry).
        extras: such as `ort-training`.

    Raises:
        ConfigError: `extras` is no list of extras.
    """
    if extras and not re.fullmatch(r"[A-Za-z0-9,-]+", extras):
        raise ConfigError(f"{extras!r} is no list of extras", remedy="write ort-training")
    if wheels is not None:
        task = InstallTask(host.python, None, extras, wheels.digest, offline)
    else:
        task = InstallTask(host.python, __version__, extras)
    return Job(f"install-{install_mark(task)}", task)


async def install(
    pool: HostPool, jobs: dict[str, Job], wheels: Tree | None, waiting: Waiting
) -> FleetOutcome:
    """Push the wheelhouse where there is one, then run the jobs to their ends."""
    if wheels is not None:
        pushed = await pool.each("push", lambda box: push(box, wheels, switch=False))
    else:
        pushed = FleetOutcome("push", [])
    results = {result.host: result for result in pushed.results if result.state == "failed"}
    by_id: dict[str, list[Host]] = {}
    for host in pool.hosts:  # hosts with different interpreters have different jobs
        if host.name not in results:
            by_id.setdefault(jobs[host.name].id, []).append(host)
    for same in by_id.values():
        part = dataclasses.replace(pool, hosts=same)
        outcome = await wait(part, {host.name: jobs[host.name] for host in same}, waiting)
        results.update({result.host: result for result in outcome.results})
    return FleetOutcome("install", [results[host.name] for host in pool.hosts])
