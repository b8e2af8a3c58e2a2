"""The supervisor keeps the tree below the budget, loses nothing, and says what it learnt."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from edgeladder.budget import meter
from edgeladder.budget.limits import MemoryLimit
from edgeladder.budget.watchdog import Watchdog
from edgeladder.core import locks
from edgeladder.core.errors import BudgetError, ConfigError, DataError, EdgeLadderError, Interrupted
from edgeladder.core.orders import FreeOrder
from edgeladder.core.plan import MachineBaseline, PhasePlan, Plan
from edgeladder.core.request import TrainRequest
from edgeladder.jobs.child import Child, with_package, worker_command
from edgeladder.jobs.run_directory import MetricsLog, RunDirectory, read_metrics
from edgeladder.jobs.supervisor import Supervisor, train

MB = 1_000_000


def make(folder, budget_bytes, *, limit="auto", restarts=2):
    """A supervisor whose budget is above what the testing process itself occupies."""
    own = meter.private(os.getpid())
    request = TrainRequest(run=str(folder / "run"), limit=limit, restarts=restarts)
    supervisor = Supervisor(request, None)
    supervisor.budget_bytes = own + budget_bytes
    supervisor.run.lock()
    supervisor.metrics = MetricsLog(supervisor.run.metrics)
    return supervisor


def free(supervisor, name, values, plan=None):
    """Run a phase of `phases.py`."""
    return supervisor.run_phase(name, FreeOrder(values=values), plan)


def records(supervisor, kind):
    return [r for r in read_metrics(supervisor.run.metrics) if r["kind"] == kind]


class Sampler(threading.Thread):
    """Watches the tree from outside the supervisor, every 5 ms."""

    def __init__(self):
        super().__init__(daemon=True)
        self.peak, self.going = 0, True

    def run(self):
        while self.going:
            self.peak = max(self.peak, meter.measure(os.getpid()).bytes)
            time.sleep(0.005)


def test_a_phase_returns_its_result_and_its_peak(tmp_path):
    with make(tmp_path, 400 * MB) as supervisor:
        result = free(supervisor, "phases:quiet", {"hold": 60 * MB})
        assert result["answer"] == 42 and result["pid"] != os.getpid()
        (record,) = records(supervisor, "phase")
        grown = record["worker_high_water_bytes"]
        assert 60 * MB < grown < 110 * MB
        assert supervisor.measured["phases:quiet"] >= grown + 0.8 * record["supervisor_bytes"]
        assert not records(supervisor, "memory")


def test_the_limit_is_live_and_read_back(tmp_path):
    with make(tmp_path, 400 * MB) as supervisor:
        free(supervisor, "phases:quiet", {})
        (record,) = records(supervisor, "limit")
        assert record["layer"] == supervisor.layer != "none"
        if record["layer"].startswith("cgroup"):
            assert record["confirmed"] == record["limit_bytes"] <= supervisor.budget_bytes


def test_a_leak_is_answered_line_by_line_and_never_passes_the_budget(tmp_path):
    values = {"steps": 400, "leak": MB, "state": str(tmp_path / "step")}
    sampler = Sampler()
    with make(tmp_path, 220 * MB, restarts=20) as supervisor:
        sampler.start()
        result = free(supervisor, "phases:leak", values)
        sampler.going = False
        sampler.join()
        assert result["step"] == 400
        actions = [record["action"] for record in records(supervisor, "memory")]
        assert actions[0] == "trim" and {"trim", "halve", "restart"} <= set(actions)
        restarts = records(supervisor, "restart")
        assert restarts and all(r["last_step"] - r["checkpoint_step"] <= 1 for r in restarts)
        assert max(sampler.peak, *supervisor.measured.values()) <= supervisor.budget_bytes


@pytest.mark.parametrize("limit", ["cgroup1", "rlimit"])
def test_an_explosion_is_stopped_by_the_limit_and_started_again(tmp_path, limit, monkeypatch):
    monkeypatch.setattr(Watchdog, "observe", lambda *a, **k: None)  # the watch sees nothing
    state = str(tmp_path / "state")
    try:
        with make(tmp_path, 200 * MB, limit=limit) as supervisor:
            baseline = MachineBaseline(9 * MB, 60 * MB, 50 * MB, 0, 0, 8 * MB, 2 * MB)
            told = Plan(200 * MB, 100 * MB, True, {}, classes=2, pictures=4, baseline=baseline)
            values = {"take": 900 * MB, "state": state}
            result = free(supervisor, "phases:once", values, told)
            (restart,) = records(supervisor, "restart")
            assert limit in restart["cause"] or "allocation" in restart["cause"]
            assert result == {"sizes": {}}
            assert max(supervisor.measured.values()) <= supervisor.budget_bytes
    except ConfigError as error:
        pytest.skip(f"this machine has no {limit}: {error}")


def test_a_picture_that_ends_its_workers_is_left_out(tmp_path):
    """Twice the same picture: the phase goes on without it, and its sizes are as planned again."""
    with make(tmp_path, 300 * MB, restarts=1) as supervisor:
        order = FreeOrder(
            values={"pictures": ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], "bomb": "c.jpg"},
            sizes=PhasePlan(batch=8),
        )
        plan = Plan(0, 0, True, {"phases:stumble": order.sizes}, 2, 4, MachineBaseline(*[0] * 7))
        result = supervisor.run_phase("phases:stumble", order, plan)
    assert result == {"seen": ["a.jpg", "b.jpg", "d.jpg"], "batch": 8}
    assert len(records(supervisor, "restart")) == 2


def test_exit_3_with_what_was_learnt_after_the_last_restart(tmp_path):
    with make(tmp_path, 200 * MB, restarts=2) as supervisor:
        with pytest.raises(BudgetError, match="3 times") as caught:
            free(supervisor, "phases:explode", {"take": 900 * MB})
        assert caught.value.exit_code == 3
        assert "the last step was 7" in caught.value.message
        # by the counter that killed it, and never above what it was held to; on a busy machine our
        # own watch may have come first, and then no counter had a say
        if records(supervisor, "phase")[-1]["limit_kills"]:
            counter = r"memory\.(?:peak|max_usage_in_bytes) of the workers was"
            found = re.search(counter + r" ([\d.]+) of the ([\d.]+) MB", caught.value.message)
            assert found and float(found[1]) <= float(found[2]) < supervisor.budget_bytes / MB
        assert "proportional size" in caught.value.message
        assert "--budget" in caught.value.remedy and "--resume" in caught.value.remedy
        assert len(records(supervisor, "restart")) == 3


def test_children_of_the_worker_count(tmp_path):
    with make(tmp_path, 600 * MB) as supervisor:
        free(supervisor, "phases:family", {"hold": 150 * MB})
        (record,) = records(supervisor, "phase")
        assert record["worker_high_water_bytes"] < 80 * MB
        assert supervisor.measured["phases:family"] > record["supervisor_bytes"] + 150 * MB


def test_errors_cross_the_pipe_as_themselves(tmp_path):
    with make(tmp_path, 400 * MB, restarts=0) as supervisor:
        with pytest.raises(DataError) as caught:
            free(supervisor, "phases:bad_data", {})
        assert str(caught.value) == "no pictures (here); remedy: add some"
        with pytest.raises(EdgeLadderError, match="about to fall"):
            free(supervisor, "phases:crash", {})
        with pytest.raises(BudgetError, match="an allocation failed: cannot allocate 9 GB"):
            free(supervisor, "phases:no_memory", {})
        with pytest.raises(EdgeLadderError, match="unknown phase"):
            free(supervisor, "nonsense", {})


def test_sigterm_lets_the_worker_save(tmp_path):
    state = tmp_path / "saved"
    with make(tmp_path, 400 * MB) as supervisor:
        supervisor.run.config.touch()  # a run that was begun can be resumed
        timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(Interrupted, match="all work so far is saved") as caught:
            free(supervisor, "phases:wait_for_stop", {"state": str(state)})
        assert caught.value.exit_code == 130 and "--resume" in caught.value.remedy
    assert state.exists()


def test_a_killed_supervisor_takes_its_worker_along(tmp_path):
    state = tmp_path / "saved"
    script = (
        "import sys; from pathlib import Path\n"
        "from test_supervisor import free, make, MB\n"
        f"s = make(Path({str(tmp_path)!r}), 400 * MB).__enter__()\n"
        f"free(s, 'phases:wait_for_stop', {{'state': {str(state)!r}}})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 20
    while not psutil.Process(process.pid).children() and time.monotonic() < deadline:
        time.sleep(0.05)
    (worker,) = (child.pid for child in psutil.Process(process.pid).children())
    while not os.path.exists(f"{state}.ready") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state.exists()
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}")


ORPHANS = """
import os, subprocess, sys, time
from edgeladder.jobs.child import worker_command, with_package
worker = subprocess.Popen(
    worker_command(sys.argv[1]), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
    env=with_package(os.environ), start_new_session=True,
)
worker.stdin.write(b'{"values": {"ready": "%s"}}\\n' % sys.argv[2].encode())
worker.stdin.flush()
print(worker.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("phase", ["phases:deaf", "phases:busy"])
def test_a_worker_that_does_not_listen_ends_half_a_second_after_its_supervisor(tmp_path, phase):
    """Neither code that never asks for orders nor one that leaves other threads little time."""
    ready = tmp_path / "ready"
    command = [sys.executable, "-c", ORPHANS, phase, str(ready)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        worker = int(process.stdout.readline())
        deadline = time.monotonic() + 20
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ready.exists()
        process.kill()
        process.wait()
        killed = time.monotonic()
        while _runs(worker) and time.monotonic() < killed + 20:
            time.sleep(0.01)
        assert time.monotonic() - killed < 5 and not _runs(worker)  # 0.3 s where it gets a core


def _runs(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_worker_whose_supervisor_ended_before_it_could_ask_ends_at_once():
    done = subprocess.run(
        [*worker_command("evaluate")[:-1], "1" if os.getpid() != 1 else "2"],
        env=with_package(os.environ), capture_output=True, stdin=subprocess.DEVNULL, timeout=20,
    )  # fmt: skip
    assert done.returncode == 1 and not done.stderr


def test_one_training_per_run_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.1)
    first = RunDirectory(tmp_path / "run")
    first.lock()
    told = []
    with pytest.raises(ConfigError, match="another process"):
        RunDirectory(tmp_path / "run").lock(told.append)
    assert len(told) == 1 and str(tmp_path / "run") in told[0]
    first.unlock()
    RunDirectory(tmp_path / "run").lock(told.append)
    assert len(told) == 1


def test_a_run_that_is_being_left_is_waited_for(tmp_path):
    first, told = RunDirectory(tmp_path / "run"), []
    first.lock()
    threading.Timer(0.3, first.unlock).start()
    RunDirectory(tmp_path / "run").lock(told.append)
    assert told and "waiting" in told[0]


def test_the_runs_lock_is_held_until_its_worker_has_ended(tmp_path, monkeypatch):
    """Else a run that is resumed at once would write beside the old worker."""
    monkeypatch.setattr(locks, "WAIT_SECONDS", 0.0)
    with make(tmp_path, 400 * MB) as supervisor:
        child = Child(
            "phases:wait_for_stop", FreeOrder(values={"state": str(tmp_path / "saved")}),
            MemoryLimit("none"), None, supervisor.run.lock_descriptor,
        )  # fmt: skip
        try:
            while not child.events(0.1):
                pass
            supervisor.run.unlock()  # as its end would
            with pytest.raises(ConfigError, match="another process"):
                RunDirectory(tmp_path / "run").lock()
        finally:
            child.kill()
            child.end()
        RunDirectory(tmp_path / "run").lock()


def test_what_to_resume_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="no run to resume"):
        train(TrainRequest(run=str(tmp_path / "absent"), resume=True))
    assert not (tmp_path / "absent").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match="holds a run already"):
        train(TrainRequest(run=str(tmp_path / "old")))


def test_the_supervisor_stays_small():
    """It counts inside the budget: no numpy, onnxruntime, pydantic or OpenSSL in it."""
    code = (
        "import sys; import edgeladder.jobs.supervisor\n"
        "heavy = {'numpy', 'onnxruntime', 'pydantic', 'yaml', 'typer', 'rich',"
        " '_hashlib'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("phase", ["train_phase", "evaluate_phase", "precompute_phase"])
def test_the_workers_that_count_stay_lean(phase):
    """pydantic and YAML cost 20 MB, package metadata 3, numpy.random 7."""
    code = (
        f"import sys; import edgeladder.jobs.{phase}, edgeladder.runtime.engine.stock\n"
        "heavy = {'pydantic', 'yaml', 'typer', 'rich', 'importlib.metadata', 'numpy.random'}"
        " & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
