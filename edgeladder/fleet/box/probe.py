"""What a box is: facts for `fleet doctor`, none of them secret."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time

from edgeladder.fleet.box.commands import check_program, fill
from edgeladder.fleet.box.jobs import user_systemd
from edgeladder.fleet.box.records import ProbeAnswer, ProbeRequest
from edgeladder.fleet.box.store import Refused

_INSTALLED = """
import json, sys
from importlib import metadata
found = {"python": "%d.%d.%d" % sys.version_info[:3]}
for name in ("edgeladder", "onnxruntime", "onnxruntime-training", "onnxruntime-training-cpu"):
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def _meminfo() -> dict[str, int]:
    facts = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            for line in stream:
                name, _, value = line.partition(":")
                facts[name] = int(value.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return facts


def _model() -> str:
    try:
        with open("/proc/device-tree/model", encoding="utf-8") as stream:
            return stream.read().strip("\0\n ")
    except (OSError, UnicodeDecodeError):
        return platform.machine()


def fence() -> str:
    """Which kernel limit a run here could have: the first that works of the design's list."""
    try:
        with open("/sys/fs/cgroup/cgroup.controllers", encoding="ascii") as stream:
            if "memory" not in stream.read().split():
                return "none: memory controller off (cgroup_enable=memory in cmdline.txt)"
    except OSError:
        if os.path.isdir("/sys/fs/cgroup/memory"):
            writable = os.access("/sys/fs/cgroup/memory", os.W_OK)
            return "cgroup v1" if writable else "rlimit only (cgroup v1, not delegated)"
        return "rlimit only (no cgroups)"
    if os.access("/sys/fs/cgroup", os.W_OK):
        return "cgroup v2"
    return "cgroup v2 by systemd-run" if user_systemd() else "rlimit only (cgroup not delegated)"


def _venv_works() -> bool:
    """Whether `python3 -m venv` can make an environment with pip (Debian splits it off)."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return False
    return True


def _installed(program: str, root: str) -> dict[str, str]:
    """Versions in the program's environment; of a program that has none, what it says itself."""
    try:
        program = fill(check_program(program, root), root, "")
        python = os.path.join(os.path.dirname(program), "python")
        if not os.path.exists(python):
            name, version = _said([program, "--version"]).split()
            return {name: version}
        found = json.loads(_said([python, "-c", _INSTALLED]))
        return {str(name): str(version) for name, version in found.items()}
    except (Refused, OSError, ValueError, subprocess.TimeoutExpired):
        return {}


def _said(command: list[str]) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=30,
    )
    return done.stdout.decode()


def probe(root: str, request: ProbeRequest) -> ProbeAnswer:
    """All facts at once."""
    memory = _meminfo()
    folder = root
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    bundle = os.path.join(root, "bundle")
    return ProbeAnswer(
        model=_model(),
        architecture=platform.machine(),
        system=platform.platform(terse=True),
        cores=os.cpu_count(),
        python=".".join(map(str, sys.version_info[:3])),
        venv=_venv_works(),
        installed=_installed(request.program, root),
        memory_bytes=memory.get("MemTotal"),
        available_bytes=memory.get("MemAvailable"),
        swap_bytes=memory.get("SwapTotal"),
        fence=fence(),
        detach="systemd-run" if user_systemd() else "setsid",
        free_disk_bytes=shutil.disk_usage(folder).free,
        writable=os.access(folder, os.W_OK),
        data=os.path.exists(fill(request.data, root, "")) if request.data else None,
        bundle=os.path.basename(os.path.realpath(bundle)) if os.path.islink(bundle) else None,
        clock=time.time(),
    )
