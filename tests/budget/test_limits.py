"""The kernel's limit for real where this machine has it; cgroup v2 on a made-up tree."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeladder.budget import limits
from edgeladder.budget.limits import MemoryLimit, open_limit
from edgeladder.core.errors import ConfigError

MB = 1_000_000
TAKE = "held = bytearray(b'x') * {size}; print('took it')"


def cgroup2(tmp_path, *, controllers="cpu memory", passed_on="memory", own="/box/job"):
    """A cgroup v2 mount as plain files, and a /proc that says where we are in it."""
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    inside = root / own.lstrip("/")
    inside.mkdir(parents=True)
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(f"0::{own}\n")
    (root / "cgroup.controllers").write_text(controllers + "\n")
    (inside / "cgroup.subtree_control").write_text("\n")
    (inside.parent / "cgroup.subtree_control").write_text(passed_on + "\n")
    os.chmod(inside / "cgroup.subtree_control", 0o444)
    return root, proc


def test_cgroup2_limits_swap_and_group_kill(tmp_path, monkeypatch):
    root, proc = cgroup2(tmp_path)
    # root may write to any file, so the kernel's refusal (processes inside) is played here
    true_write = limits._write
    refused = str(root / "box" / "job" / "cgroup.subtree_control")
    monkeypatch.setattr(
        limits, "_write", lambda path, text: path != refused and true_write(path, text)
    )
    held = open_limit("cgroup2", 150 * MB + 77, root=str(root), proc=str(proc))
    assert held.layer == "cgroup2" and os.path.dirname(held.folder) == str(root / "box")
    folder = Path(held.folder)
    limit = int((folder / "memory.max").read_text())
    assert limit == held.limit_bytes and limit % 4096 == 0 and 0 <= 150 * MB + 77 - limit < 4096
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "memory.oom.group").read_text() == "1"
    (folder / "cgroup.procs").touch()
    held.enter()
    assert (folder / "cgroup.procs").read_text() == "0"
    (folder / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (folder / "memory.peak").write_text("123456\n")
    assert held.kills() == 2 and held.peak_bytes() == 123456


def test_cgroup2_limit_that_does_not_stick_is_no_limit(tmp_path, monkeypatch):
    root, proc = cgroup2(tmp_path)
    true_read = limits._read
    monkeypatch.setattr(
        limits, "_read", lambda path: "max" if path.endswith("memory.max") else true_read(path)
    )
    with pytest.raises(ConfigError, match="no cgroup2 limit") as caught:
        open_limit("cgroup2", 150 * MB, root=str(root), proc=str(proc))
    assert "did not take the limit" in caught.value.where


@pytest.mark.parametrize(
    ("setting", "reason"),
    [({"controllers": "cpu io"}, "cgroup_enable=memory"), ({}, "not mounted")],
)
def test_why_a_layer_is_not_live_is_told(tmp_path, setting, reason):
    root, proc = cgroup2(tmp_path, **setting) if setting else (tmp_path, tmp_path)
    held = open_limit("auto", 150 * MB, root=str(root), proc=str(proc))
    assert held.layer in ("systemd-run", "rlimit")
    assert held.notes[0].startswith("cgroup2:") and reason in held.notes[0]


def run_inside(held, size):
    return subprocess.run(
        [*held.prefix, sys.executable, "-c", TAKE.format(size=size)],
        preexec_fn=held.enter,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def real_cgroup1():
    try:
        held = open_limit("cgroup1", 100 * MB)
    except ConfigError as error:
        pytest.skip(str(error))
    yield held
    held.close()
    assert not os.path.exists(held.folder)


def test_cgroup1_really_kills(real_cgroup1):
    small = run_inside(real_cgroup1, 40 * MB)
    assert small.returncode == 0 and real_cgroup1.kills() == 0
    large = run_inside(real_cgroup1, 400 * MB)
    assert large.returncode == -9 and real_cgroup1.kills() == 1
    assert 90 * MB < real_cgroup1.peak_bytes() <= real_cgroup1.limit_bytes


def test_cgroup1_confirms_only_members(real_cgroup1):
    code = "import sys; sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, preexec_fn=real_cgroup1.enter
    )
    assert real_cgroup1.confirm(process.pid) == real_cgroup1.limit_bytes
    assert real_cgroup1.confirm(os.getpid()) is None
    process.communicate()


def test_cgroups_of_dead_supervisors_are_removed(real_cgroup1):
    parent = os.path.dirname(real_cgroup1.folder)
    stale = f"{parent}/edgeladder-999999999-0"
    os.mkdir(stale)
    other = open_limit("cgroup1", 50 * MB)
    assert not os.path.exists(stale) and os.path.exists(real_cgroup1.folder)
    other.close()


def test_rlimit_makes_the_allocation_fail():
    held = open_limit("rlimit", 100 * MB)
    large = run_inside(held, 400 * MB)
    assert large.returncode == 1 and "MemoryError" in large.stderr
    assert run_inside(held, 20 * MB).returncode == 0
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, preexec_fn=held.enter
    )
    assert held.confirm(process.pid) == held.limit_bytes
    process.communicate(b"\n")


SYSTEMD_RUN = """#!/bin/sh
# plays the user manager: a scope whose memory.max is the property it was given
echo "$@" >> {log}
limit=
while [ "$1" != "--" ]; do
    case "$1" in MemoryMax=*) limit=${{1#MemoryMax=}};; esac
    shift
done
shift
folder={root}$(sed -n 's/^0:://p' /proc/self/cgroup)
mkdir -p "$folder"
echo {value} > "$folder/memory.max"
exec "$@"
"""


@pytest.fixture
def systemd_run(tmp_path, monkeypatch):
    def install(value="$limit"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        path = tmp_path / "bin" / "systemd-run"
        log, root = tmp_path / "log", tmp_path / "cgroup"
        path.write_text(SYSTEMD_RUN.format(log=log, root=root, value=value))
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        return str(root), log

    return install


def test_systemd_run_is_trusted_when_its_scope_has_the_limit(systemd_run):
    root, log = systemd_run()
    held = open_limit("systemd-run", 100 * MB + 5, root=root)
    assert held.layer == "systemd-run" and 0 <= 100 * MB + 5 - held.limit_bytes < 4096
    told = log.read_text().split("--", 1)[1]
    for part in ("user", "--scope", f"MemoryMax={held.limit_bytes}", "MemorySwapMax=0"):
        assert part in told
    done = run_inside(held, 20 * MB)  # the worker is started through it, in place
    assert done.returncode == 0 and done.stdout.strip() == "took it"
    assert log.read_text().count("MemoryMax=") == 2


@pytest.mark.parametrize("value", ["max", "999999999"])
def test_systemd_run_without_delegation_is_no_limit(systemd_run, value):
    root, _ = systemd_run(value)
    with pytest.raises(ConfigError, match="no systemd-run limit") as caught:
        open_limit("systemd-run", 100 * MB, root=root)
    assert "not delegated" in caught.value.where


def test_a_user_manager_that_is_not_there_is_told(tmp_path, monkeypatch):
    script = tmp_path / "systemd-run"
    script.write_text("#!/bin/sh\necho Failed to connect to bus: No medium found >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(ConfigError) as caught:
        open_limit("systemd-run", 100 * MB)
    assert "Failed to connect to bus" in caught.value.where


def test_wrong_names():
    with pytest.raises(ConfigError, match="unknown limit 'wall'"):
        open_limit("wall", MB)
    assert open_limit("none", MB) == MemoryLimit("none")
