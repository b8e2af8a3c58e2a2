"""The meter against allocations of known size, psutil, and a /proc of our own making."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from edgeladder.budget import meter

MB = 1_000_000
HOLD = "import sys,time; held = bytearray(b'x') * {size}; print('ready', flush=True); {more}"


def holder(size, more="time.sleep(60)"):
    code = HOLD.format(size=size, more=more)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "ready"
    return process


@pytest.fixture
def held():
    with holder(80 * MB) as process:
        yield process
        process.kill()


def test_against_psutil(held):
    reference = psutil.Process(held.pid).memory_full_info()
    assert meter.resident(held.pid) == pytest.approx(reference.rss, rel=0.02)
    assert meter.proportional(held.pid)[0] == pytest.approx(reference.pss, rel=0.02)
    assert meter.private(held.pid) == pytest.approx(reference.uss, rel=0.02)
    assert meter.high_water(held.pid) >= 80 * MB


def test_a_tree_is_summed_over_generations():
    code = HOLD.format(size=30 * MB, more="time.sleep(60)")
    inner = f"import subprocess; subprocess.run([sys.executable, '-c', {code!r}])"
    process = holder(40 * MB, inner)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        usage = meter.measure(process.pid)
        cheap = meter.measure(process.pid, pss_above=None)
        # not the moment between fork and exec, when the child is a copy of its parent
        if 70 * MB < usage.bytes < cheap.bytes:
            break
        time.sleep(0.02)
    pids = {process.pid, *(p.pid for p in psutil.Process(process.pid).children(recursive=True))}
    assert usage.exact and set(usage.processes) == pids and len(pids) == 2
    assert not cheap.exact and 70 * MB < usage.bytes < cheap.bytes < 110 * MB
    for pid in pids:
        os.kill(pid, 9)
    process.communicate()


def test_high_water_is_the_programs_own_not_its_parents():
    """ru_maxrss survives exec; a child of this large process must not show it."""
    ballast = bytearray(b"x") * (150 * MB)
    process = holder(5 * MB)
    assert meter.high_water(process.pid) < 60 * MB
    process.kill()
    process.communicate()
    del ballast


def test_a_process_that_is_gone_is_zero():
    process = holder(MB)
    process.kill()
    process.communicate()
    assert meter.measure(process.pid).bytes == 0
    assert meter.high_water(process.pid) == meter.private(process.pid) == 0


def test_swap_and_jetson_memory_count(tmp_path, monkeypatch):
    """A made-up /proc: 100 pages resident, 300 kB swapped, 2 MB on the GPU."""
    task = tmp_path / "7" / "task" / "7"
    task.mkdir(parents=True)
    (task / "children").write_text("")
    (tmp_path / "7" / "statm").write_text("999 100 5 1 0 9 0\n")
    (tmp_path / "7" / "status").write_text("Name:\tx\nVmSwap:\t  300 kB\nVmHWM:\t 900 kB\n")
    (tmp_path / "7" / "smaps_rollup").write_text("Pss:  350 kB\nSwapPss:  290 kB\n")
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nNvMapMemUsed:  2500 kB\n")
    monkeypatch.setattr(meter, "PROC", str(tmp_path))
    cheap = meter.measure(7, pss_above=None, gpu=True, gpu_before=500 * 1024)
    assert cheap.swap_bytes == 300 * 1024 and cheap.gpu_bytes == 2000 * 1024
    assert cheap.bytes == 100 * os.sysconf("SC_PAGE_SIZE") + 2300 * 1024
    exact = meter.measure(7, gpu=True, gpu_before=500 * 1024)
    assert exact.exact and exact.bytes == (350 + 290 + 2000) * 1024
    assert meter.total_bytes() == 4000 * 1024 and meter.high_water(7) == 900 * 1024


def test_kernel_without_child_lists_and_odd_names(tmp_path, monkeypatch):
    for pid, parent, name in ((1, 0, "init"), (5, 1, "a) b (c"), (6, 5, "x")):
        (tmp_path / str(pid) / "task" / str(pid)).mkdir(parents=True)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0\n")
    monkeypatch.setattr(meter, "PROC", str(tmp_path))
    assert sorted(meter.tree(1)) == [1, 5, 6]


def test_pressure_is_read(tmp_path, monkeypatch):
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "memory").write_text(
        "some avg10=9.00 avg60=1 avg300=0 total=1\nfull avg10=4.50 avg60=1 avg300=0 total=1\n"
    )
    monkeypatch.setattr(meter, "PROC", str(tmp_path))
    assert meter.pressure() == 4.5
    monkeypatch.setattr(meter, "PROC", str(tmp_path / "absent"))
    assert meter.pressure() == 0.0
