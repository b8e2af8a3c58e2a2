"""The meter against allocations of known size, psutil, and a /proc of our own making."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest

from edgeladder.budget import kernel_marks, meter

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
    assert meter.measure(held.pid).bytes == pytest.approx(reference.pss, rel=0.02)
    assert meter.private(held.pid) == pytest.approx(reference.uss, rel=0.02)
    assert kernel_marks.high_water(held.pid) >= 80 * MB


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
    assert kernel_marks.high_water(process.pid) < 60 * MB
    process.kill()
    process.communicate()
    del ballast


def test_a_process_that_is_gone_is_zero():
    process = holder(MB)
    process.kill()
    process.communicate()
    assert meter.measure(process.pid).bytes == 0
    assert kernel_marks.high_water(process.pid) == meter.private(process.pid) == 0


def test_swap_counts(monkeypatch, held):
    """As psutil tells it, asked for while somebody on the machine has swapped."""
    full = psutil.Process(held.pid).memory_full_info()
    swapped = full._replace(swap=7 * MB)
    monkeypatch.setattr(psutil.Process, "memory_full_info", lambda self: swapped)
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(used=9 * MB))
    cheap = meter.measure(held.pid, pss_above=None)
    assert cheap.swap_bytes == 7 * MB and cheap.bytes == pytest.approx(full.rss + 7 * MB, rel=0.02)
    assert meter.measure(held.pid).bytes == full.pss + 7 * MB
    assert meter.private(held.pid) == full.uss + 7 * MB


def test_a_jetsons_gpu_counts_what_was_not_there_before(tmp_path, monkeypatch, held):
    (tmp_path / "meminfo").write_text("MemTotal: 4000 kB\nNvMapMemUsed:  2500 kB\n")
    monkeypatch.setattr(kernel_marks, "PROC", str(tmp_path))
    usage = meter.measure(held.pid, pss_above=None, gpu_before=500 * 1024)
    assert usage.gpu_bytes == 2000 * 1024 == usage.bytes - sum(usage.processes.values())
    assert meter.measure(held.pid, pss_above=None).gpu_bytes == 0


def test_a_jetson_whose_gpu_is_idle_is_told_from_a_machine_without(tmp_path, monkeypatch, held):
    monkeypatch.setattr(kernel_marks, "PROC", str(tmp_path))
    monkeypatch.setattr(kernel_marks, "NVMAP", str(tmp_path / "clients"))
    assert kernel_marks.gpu_bytes() is None
    (tmp_path / "clients").write_text("CLIENT PROCESS PID SIZE\nuser a 7 64K\ntotal 2M\n")
    assert kernel_marks.gpu_bytes() == 2 * 1024**2
    (tmp_path / "meminfo").write_text("NvMapMemUsed:  0 kB\n")
    before = kernel_marks.gpu_bytes()
    assert before == 0
    (tmp_path / "meminfo").write_text("NvMapMemUsed:  300 kB\n")
    assert meter.measure(held.pid, pss_above=None, gpu_before=before).gpu_bytes == 300 * 1024


def test_a_tree_is_looked_up_again_after_a_moment(monkeypatch):
    monkeypatch.setattr(meter, "_WALK_SECONDS", 0.05)
    monkeypatch.setattr(meter, "_WALK_SHARE", 1)
    gauge = meter.TreeMeter(os.getpid())
    assert len(gauge.read(pss_above=None).processes) >= 1 and gauge.walk_seconds > 0
    process = holder(20 * MB)
    time.sleep(0.1)
    grown = gauge.read(pss_above=None)
    assert process.pid in grown.processes
    process.kill()
    process.communicate()
    assert process.pid not in gauge.read(pss_above=None).processes


def test_pressure_and_marks_are_read(tmp_path, monkeypatch):
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "memory").write_text(
        "some avg10=9.00 avg60=1 avg300=0 total=1\nfull avg10=4.50 avg60=1 avg300=0 total=1\n"
    )
    monkeypatch.setattr(kernel_marks, "PROC", str(tmp_path))
    assert kernel_marks.pressure() == 4.5
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tx\nVmHWM:\t 900 kB\n")
    assert kernel_marks.high_water(7) == 900 * 1024
    monkeypatch.setattr(kernel_marks, "PROC", str(tmp_path / "absent"))
    assert kernel_marks.pressure() == 0.0
