"""A cgroup around the process: version 1 for real where this machine has it, version 2 made up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeladder.budget import cgroup_files, policy
from edgeladder.budget.limits import MemoryLimit, open_limit
from edgeladder.budget.planner import check
from edgeladder.budget.surroundings import surrounding
from edgeladder.core.errors import BudgetError, ConfigError
from edgeladder.core.plan import MachineBaseline, PhasePlan, Plan, Surrounding

MB = 1_000_000
ROOT = Path(__file__).resolve().parents[2]
ASK = """
import json, os
from edgeladder.budget import meter
from edgeladder.budget.surroundings import surrounding
found = surrounding(meter.private(os.getpid()))
print(json.dumps([found.folder, found.limit_bytes, found.others_bytes]))
"""


def group(folder: Path, *, limit: int | str, usage: int, files: int, high: str = "max") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.high").write_text(f"{high}\n")
    (folder / "memory.current").write_text(f"{usage}\n")
    half = files // 2
    text = f"anon {usage - files}\nfile {files}\ninactive_file {half}\nactive_file {half}\n"
    (folder / "memory.stat").write_text(text)


@pytest.fixture
def tree(tmp_path: Path) -> tuple[Path, Path, str]:
    """A cgroup v2 mount with a container, a unit in it, and this process in the unit."""
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/box/unit/job\n")
    group(root / "box/unit/job", limit="max", usage=50 * MB, files=0)
    group(root / "box/unit", limit=900 * MB, usage=300 * MB, files=200 * MB)
    group(root / "box", limit=1_000 * MB, usage=700 * MB, files=100 * MB)
    (root / "cgroup.controllers").write_text("memory\n")
    return root, proc, str(root / "box")


def test_the_ancestor_that_leaves_least_is_found(tree: tuple[Path, Path, str]) -> None:
    root, proc, box = tree
    found = surrounding(20 * MB, root=str(root), proc=str(proc))
    # 700 in use, of which 100 are page cache and 20 our own
    assert found == Surrounding(folder=box, limit_bytes=1_000 * MB, others_bytes=580 * MB)
    assert found.room_bytes == 420 * MB
    group(root / "box/unit", limit=900 * MB, high=str(250 * MB), usage=300 * MB, files=200 * MB)
    found = surrounding(20 * MB, root=str(root), proc=str(proc))
    assert found is not None and found.folder.endswith("unit") and found.room_bytes == 170 * MB


def test_no_limit_is_no_surrounding(tree: tuple[Path, Path, str], tmp_path: Path) -> None:
    root, proc, _ = tree
    for name in ("box", "box/unit"):
        group(root / name, limit="max", usage=MB, files=0)
    assert surrounding(0, root=str(root), proc=str(proc)) is None
    assert surrounding(0, root=str(tmp_path / "none"), proc=str(tmp_path / "none")) is None


def test_inside_a_container_the_mount_is_the_containers(tree: tuple[Path, Path, str]) -> None:
    root, proc, _ = tree
    (proc / "self" / "cgroup").write_text("0::/of/the/host\n")
    group(root, limit=200 * MB, usage=60 * MB, files=0)
    found = surrounding(10 * MB, root=str(root), proc=str(proc))
    assert found is not None and found.room_bytes == 150 * MB


def test_version_1_counts_pages_of_no_limit_as_none(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("4:memory:/a/b\n0::/\n")
    for name, limit in (("", 9223372036854771712), ("/a", 300 * MB), ("/a/b", 2 << 62)):
        folder = Path(f"{root}/memory{name}")
        folder.mkdir(parents=True)
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{120 * MB}\n")
        (folder / "memory.stat").write_text(
            f"cache {40 * MB}\ntotal_inactive_file {15 * MB}\ntotal_active_file {25 * MB}\n"
        )
    found = surrounding(30 * MB, root=str(root), proc=str(proc))
    assert found == Surrounding(f"{root}/memory/a", 300 * MB, 50 * MB)


@pytest.fixture
def real() -> MemoryLimit:
    """A cgroup of this machine with 300 MB."""
    for layer in ("cgroup2", "cgroup1"):
        try:
            return open_limit(layer, 300 * MB)
        except ConfigError:
            continue
    pytest.skip("this machine lets us make no cgroup")


def test_a_real_one_is_found_from_inside(real: MemoryLimit) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK], preexec_fn=real.enter, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
        )  # fmt: skip
    finally:
        real.close()
    folder, limit, others = json.loads(done.stdout)
    assert (folder, limit) == (real.folder, real.limit_bytes)
    assert others < 20 * MB  # what the kernel counts beside our private pages: its own tables


def test_a_budget_is_what_the_surrounding_leaves_and_a_refusal_says_so() -> None:
    around = Surrounding("/sys/fs/cgroup/box", 300 * MB, 120 * MB)
    assert policy.within(400 * MB, around) == 180 * MB
    assert policy.within(150 * MB, around) == 150 * MB == policy.within(150 * MB, None)
    phases = {"train": PhasePlan(planned_peak_bytes=190 * MB)}
    baseline = MachineBaseline(*[0] * 7)
    plan = Plan(180 * MB, 212 * MB, False, phases, 2, 4, baseline, surrounding=around)
    with pytest.raises(BudgetError) as caught:
        check(plan)
    said = f"{caught.value.message} {caught.value.remedy}"
    assert "/sys/fs/cgroup/box" in said and "300 MB" in said and "120 MB" in said
    assert "raise its limit by 32 MB" in said
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    beyond = Plan(150 * MB, 212 * MB, False, phases, 2, 4, baseline, surrounding=around)
    assert beyond.narrowed == ""


def test_a_statistic_that_is_none_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("a 1\nb x\n\nc\n")
    assert cgroup_files.statistics(str(tmp_path / "stat")) == {"a": 1}
