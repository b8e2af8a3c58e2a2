"""The limit of a cgroup that this process was started in: a container's, a unit's, a slice's.

A budget beyond it is no budget: the kernel would kill at the surrounding limit before the watch
had seen anything. Every ancestor may have one, so all are asked, up to the root. What else runs in
there takes its part; page cache does not, the kernel gives it up before it kills.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from edgeladder.budget import cgroup_files
from edgeladder.core.plan import Surrounding


@dataclass(frozen=True)
class _Hierarchy:
    """How one version of cgroups names things."""

    limits: tuple[str, ...]  # the lowest counts
    usage: str
    cache: tuple[str, ...]  # of memory.stat: pages of files, this cgroup's and all below it


_VERSION_1 = _Hierarchy(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)
# memory.high does not kill, but slows what is above it to a standstill
_VERSION_2 = _Hierarchy(
    ("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")
)


def surrounding(
    own_bytes: int, *, root: str = "/sys/fs/cgroup", proc: str = "/proc"
) -> Surrounding | None:
    """The ancestor that leaves least; None where none has a limit.

    Args:
        own_bytes: of this process and what it started, which is not "what else runs there".
        root: mount point of the cgroup hierarchies.
        proc: mount point of procfs.
    """
    own = cgroup_files.own_paths(proc)
    found = []
    for mount, path, names in (
        (f"{root}/memory", own.get("memory"), _VERSION_1),
        (_unified(root), own.get(""), _VERSION_2),
    ):
        if path is not None:
            found += [_look(folder, names, own_bytes) for folder in _ancestors(mount, path)]
    return min((one for one in found if one), key=lambda one: one.room_bytes, default=None)


def _unified(root: str) -> str:
    return root if os.path.exists(f"{root}/cgroup.controllers") else f"{root}/unified"


def _ancestors(mount: str, path: str) -> Iterator[str]:
    """The process's own cgroup, and every one that it is in, the mount's root included.

    Inside a container the path is the host's and not there, and the mount is the container's own.
    """
    while path.strip("/"):
        yield mount + path
        path = os.path.dirname(path)
    yield mount


def _look(folder: str, names: _Hierarchy, own_bytes: int) -> Surrounding | None:
    told = [cgroup_files.number(cgroup_files.read(f"{folder}/{name}")) for name in names.limits]
    limits = [limit for limit in told if limit is not None and limit < cgroup_files.UNLIMITED]
    usage = cgroup_files.number(cgroup_files.read(f"{folder}/{names.usage}"))
    if not limits:
        return None
    pages = cgroup_files.statistics(f"{folder}/memory.stat")
    cache = sum(pages.get(name, 0) for name in names.cache)
    return Surrounding(
        folder=folder,
        limit_bytes=min(limits),
        others_bytes=max(0, (usage or 0) - cache - own_bytes),
    )
