"""A limit the kernel enforces, so that a spike between two samples cannot pass the budget.

Tried in this order, each read back before it is trusted:

    cgroup2      memory.max of a cgroup of our own, swap off
    cgroup1      memory.limit_in_bytes, and memory.memsw where the kernel counts swap
    systemd-run  a user scope with MemoryMax, where systemd delegates the memory controller
    rlimit       RLIMIT_DATA; weaker: it bounds writable address space, not resident pages

The limit holds the workers, not the supervisor: that one must live to restart them. Its limit is
the budget less what the supervisor itself occupies.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from edgeladder.budget.cgroup_files import number as _number
from edgeladder.budget.cgroup_files import own_paths as _own_paths
from edgeladder.budget.cgroup_files import read as _read
from edgeladder.budget.cgroup_files import write as _write
from edgeladder.core.errors import ConfigError

LAYERS = ("cgroup2", "cgroup1", "systemd-run", "rlimit")
_PREFIX = "edgeladder-"
_PAGE = 4096
_PEAK_FILES = {"cgroup1": "memory.max_usage_in_bytes", "cgroup2": "memory.peak"}


@dataclass
class MemoryLimit:
    """A live limit, or none."""

    layer: str  # one of LAYERS, or "none"
    limit_bytes: int | None = None  # as the kernel confirms it
    folder: str | None = None  # of the cgroup
    notes: list[str] = field(default_factory=list)  # why stronger layers are not live
    prefix: list[str] = field(default_factory=list)  # command the worker is started through
    enter: Callable[[], None] | None = None  # run in the child between fork and exec

    def kills(self) -> int:
        """How many processes the kernel killed at this limit."""
        if self.layer == "cgroup1":
            lines = _read(f"{self.folder}/memory.oom_control")
        elif self.layer == "cgroup2":
            lines = _read(f"{self.folder}/memory.events")
        else:
            return 0
        for line in lines.splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
        return 0

    def peak_bytes(self) -> int | None:
        """The kernel's high-water mark inside the limit, page cache included."""
        name = _PEAK_FILES.get(self.layer)
        return _number(_read(f"{self.folder}/{name}")) if name else None

    def held(self) -> str | None:
        """In words, by which counter of the kernel the workers came to this limit; None: not known.

        Page cache of the files that they read counts there, but is given up before a process is.
        """
        name = _PEAK_FILES.get(self.layer)
        peak = self.peak_bytes()
        if name is None or peak is None or self.limit_bytes is None:
            return None
        return (
            f"the kernel's {name} of the workers was {peak / 1e6:.1f} of the "
            f"{self.limit_bytes / 1e6:.1f} MB they are allowed"
        )

    def confirm(self, pid: int) -> int | None:
        """The limit that holds for a running worker, asked of the kernel; None if none does."""
        if self.layer == "rlimit":
            return _rlimit_of(pid)
        if self.layer == "systemd-run":
            return _cgroup2_limit_of(pid)
        if self.folder is not None:
            members = _read(f"{self.folder}/cgroup.procs").split()
            return self.limit_bytes if str(pid) in members else None
        return None

    def close(self) -> None:
        """Remove the cgroup; its processes have ended."""
        if self.folder is None:
            return
        for _ in range(50):
            try:
                os.rmdir(self.folder)
                return
            except FileNotFoundError:
                return
            except OSError:  # the kernel still tears a process down
                time.sleep(0.02)

    def to_dict(self) -> dict[str, object]:
        """For the run's record."""
        return {"layer": self.layer, "limit_bytes": self.limit_bytes, "notes": self.notes}


def open_limit(
    wanted: str,
    limit_bytes: int,
    *,
    data_slack_bytes: int = 0,
    root: str = "/sys/fs/cgroup",
    proc: str = "/proc",
) -> MemoryLimit:
    """Build the strongest limit this machine allows.

    Args:
        wanted: `auto`, `none`, or the one layer to use.
        limit_bytes: resident bytes the workers may take.
        data_slack_bytes: writable address space of a fresh worker that is not resident, which
            RLIMIT_DATA counts and memory does not; less what is resident but not writable.
        root: mount point of the cgroup hierarchies.
        proc: mount point of procfs.

    Raises:
        ConfigError: an unknown layer, or the wanted one cannot be had.
    """
    if wanted == "none":
        return MemoryLimit("none")
    if wanted != "auto" and wanted not in LAYERS:
        raise ConfigError(
            f"unknown limit {wanted!r}", remedy=f"use auto, none or one of {', '.join(LAYERS)}"
        )
    notes: list[str] = []
    limit = limit_bytes - limit_bytes % _PAGE
    for layer in LAYERS if wanted == "auto" else (wanted,):
        kernel_limit: MemoryLimit | str
        if layer == "cgroup2":
            kernel_limit = _cgroup2(limit, root, proc)
        elif layer == "cgroup1":
            kernel_limit = _cgroup1(limit, root, proc)
        elif layer == "systemd-run":
            kernel_limit = _systemd_run(limit, root)
        else:
            kernel_limit = _rlimit(limit + data_slack_bytes)
        if isinstance(kernel_limit, MemoryLimit):
            kernel_limit.notes = notes
            return kernel_limit
        notes.append(f"{layer}: {kernel_limit}")
    if wanted != "auto":
        raise ConfigError(f"no {wanted} limit here", where=notes[0], remedy="ask for auto instead")
    return MemoryLimit("none", notes=notes)


def _remove_stale(parent: str) -> None:
    """Cgroups of supervisors that were killed; a live one's is not empty or has a live pid."""
    with contextlib.suppress(OSError):
        for name in os.listdir(parent):
            owner = name[len(_PREFIX) :].partition("-")[0] if name.startswith(_PREFIX) else ""
            if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
                with contextlib.suppress(OSError):
                    os.rmdir(f"{parent}/{name}")


def _new_group(parent: str) -> str | None:
    _remove_stale(parent)
    for number in range(100):
        folder = f"{parent}/{_PREFIX}{os.getpid()}-{number}"
        try:
            os.mkdir(folder)
            return folder
        except FileExistsError:
            continue
        except OSError:
            return None
    return None


def _joiner(folder: str) -> Callable[[], None]:
    path = f"{folder}/cgroup.procs".encode()

    def join() -> None:
        descriptor = os.open(path, os.O_WRONLY)
        os.write(descriptor, b"0")  # the writing process itself
        os.close(descriptor)

    return join


def _cgroup2(limit: int, root: str, proc: str) -> MemoryLimit | str:
    mount = root if os.path.exists(f"{root}/cgroup.controllers") else f"{root}/unified"
    available = _read(f"{mount}/cgroup.controllers").split()
    if "memory" not in available:
        if not os.path.exists(f"{mount}/cgroup.controllers"):
            return "not mounted"
        return (
            "the memory controller is off or bound to cgroup v1 (Raspberry Pi OS: add "
            "cgroup_enable=memory to /boot/firmware/cmdline.txt)"
        )
    own = _own_paths(proc).get("", "/").rstrip("/")
    # a cgroup with processes cannot pass controllers on, so try beside ourselves too
    parents = [f"{mount}{own}", f"{mount}{os.path.dirname(own)}".rstrip("/")]
    reason = "no parent cgroup passes the memory controller on"
    for parent in dict.fromkeys(parents):
        if "memory" not in _read(f"{parent}/cgroup.subtree_control").split() and not _write(
            f"{parent}/cgroup.subtree_control", "+memory"
        ):
            continue
        folder = _new_group(parent)
        if folder is None:
            reason = "may not make a cgroup"
            continue
        kernel_limit = MemoryLimit("cgroup2", folder=folder)
        _write(f"{folder}/memory.swap.max", "0")
        _write(f"{folder}/memory.oom.group", "1")
        if _write(f"{folder}/memory.max", str(limit)):
            kernel_limit.limit_bytes = _number(_read(f"{folder}/memory.max"))
        if kernel_limit.limit_bytes is not None and kernel_limit.limit_bytes <= limit:
            kernel_limit.enter = _joiner(folder)
            return kernel_limit
        kernel_limit.close()
        reason = "memory.max did not take the limit"
    return reason


def _cgroup1(limit: int, root: str, proc: str) -> MemoryLimit | str:
    mount = f"{root}/memory"
    if not os.path.exists(f"{mount}/memory.limit_in_bytes"):
        return "the memory controller is not mounted"
    parent = mount + _own_paths(proc).get("memory", "/").rstrip("/")
    if not os.path.isdir(parent):  # inside a container the path is the host's
        parent = mount
    folder = _new_group(parent)
    if folder is None:
        return "may not make a cgroup"
    kernel_limit = MemoryLimit("cgroup1", folder=folder)
    if _write(f"{folder}/memory.limit_in_bytes", str(limit)):
        kernel_limit.limit_bytes = _number(_read(f"{folder}/memory.limit_in_bytes"))
    # memory and swap together: without it the group would swap past the budget
    _write(f"{folder}/memory.memsw.limit_in_bytes", str(limit))
    if kernel_limit.limit_bytes is None or kernel_limit.limit_bytes > limit:
        kernel_limit.close()
        return "memory.limit_in_bytes did not take the limit"
    kernel_limit.enter = _joiner(folder)
    return kernel_limit


# inside the scope: the limit of the cgroup it is in, as the kernel tells it
_TELL_LIMIT = """
path=$(sed -n 's/^0:://p' /proc/self/cgroup)
cat "$0$path/memory.max" 2>/dev/null || cat "$0/unified$path/memory.max"
"""


def _systemd_run(limit: int, root: str) -> MemoryLimit | str:
    import shutil
    import subprocess

    if shutil.which("systemd-run") is None:
        return "not installed"
    scope = ["systemd-run", "--user", "--scope", "--quiet", "--collect"]
    scope += ["-p", f"MemoryMax={limit}", "-p", "MemorySwapMax=0", "--"]
    try:
        # a trial run: without a user manager, or without delegation, there is no limit to read
        probe = subprocess.run(
            [*scope, "sh", "-c", _TELL_LIMIT, root], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if probe.returncode:
        return (probe.stderr.strip().splitlines() or ["no user manager"])[-1]
    told = _number(probe.stdout.strip())
    if told is None or told > limit:
        return "a user scope does not get the limit: the memory controller is not delegated"
    return MemoryLimit("systemd-run", limit_bytes=told, prefix=scope)


def _cgroup2_limit_of(pid: int) -> int | None:
    for line in _read(f"/proc/{pid}/cgroup").splitlines():
        if line.startswith("0::"):
            for mount in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
                limit = _number(_read(f"{mount}{line[3:]}/memory.max"))
                if limit is not None:
                    return limit
    return None


def _rlimit(limit: int) -> MemoryLimit | str:
    try:
        import resource
    except ImportError:
        return "no resource limits on this system"
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    return MemoryLimit("rlimit", limit_bytes=limit, enter=set_limit)


def _rlimit_of(pid: int) -> int | None:
    for line in _read(f"/proc/{pid}/limits").splitlines():
        if line.startswith("Max data size"):
            return _number(line.split()[3])
    return None
