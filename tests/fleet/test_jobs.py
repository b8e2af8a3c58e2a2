"""Jobs: started once, detached, followed by offset, found again after a reboot."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import signal
import stat
import time
from pathlib import Path
from typing import Any

import pytest

from edgeladder.fleet import box as agent_package
from edgeladder.fleet.box import jobs as agent_jobs
from edgeladder.fleet.box.records import StartRequest, TrainOptions, TrainTask
from edgeladder.fleet.host_pool import run
from edgeladder.fleet.outcomes import FleetOutcome
from edgeladder.fleet.remote_jobs import (
    Job,
    Progress,
    Waiting,
    look,
    start,
    start_again,
    stop,
    wait,
)

DIGEST = "0" * 64
BEGUN = "mkdir -p run; touch run/config.yaml; "
COUNT = "n=$(cat count 2>/dev/null || echo 0); echo $((n+1)) > count; "


def shell(farm: Any, name: str, script: str, *, resume: str | None = None, **more: Any) -> Job:
    """A training for which every box's stand-in runs a script, and another where it resumes."""
    for box in farm.boxes.values():
        (box.root / "trees" / "bundle" / DIGEST).mkdir(parents=True, exist_ok=True)
        said = box.home / "behaviour.json"
        scripts = json.loads(said.read_text())["scripts"] if said.exists() else {}
        scripts[name] = COUNT + script
        scripts[f"{name}:resume"] = COUNT + (script if resume is None else resume)
        box.behave(scripts=scripts)
    options = TrainOptions(DIGEST, **more)
    return Job(name, TrainTask(farm.defaults["program"], "~/pictures", options))


def begin(pool: Any, job: Job) -> FleetOutcome:
    return run(pool.each("train", lambda box: start(box, job)))


def states(pool: Any, job: str, known: dict[str, Progress] | None = None) -> dict[str, Progress]:
    known = {} if known is None else known
    run(look(pool, job, known))
    return known


def until(pool: Any, job: str, *wanted: str) -> Progress:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        progress = states(pool, job)[pool.hosts[0].name]
        if progress.state in wanted:
            return progress
        time.sleep(0.05)
    raise AssertionError(f"still {progress.state}, not {wanted}")


def count(farm: Any, job: str) -> int:
    return int((farm.boxes["a"].root / "jobs" / job / "count").read_text())


def test_survives_the_connection_and_runs_once(make_farm: Any, pool_of: Any) -> None:
    farm = make_farm("a", proxied=True)
    job = shell(farm, "j1", "mkdir run; while [ ! -e go ]; do sleep 0.05; done; echo '{\"x\": 1}'")
    first = begin(pool_of(farm), job).results[0]
    assert first.state == "done" and first.facts["job_state"] == "running"
    farm.boxes["a"].proxy.cut()
    for _ in range(2):
        again = begin(pool_of(farm), job).results[0]
        assert (again.state, again.facts["attempts"]) == ("unchanged", 1)
    (farm.boxes["a"].root / "jobs" / "j1" / "go").touch()
    assert until(pool_of(farm), "j1", "done").exit_code == 0
    assert begin(pool_of(farm), job).results[0].facts["job_state"] == "done"
    assert count(farm, "j1") == 1
    folder = farm.boxes["a"].root / "jobs" / "j1"
    assert json.loads((folder / "result.json").read_text()) == {"x": 1}
    stale = dataclasses.replace(job, supersede=0)  # not the attempt that is there
    assert begin(pool_of(farm), stale).results[0].state == "unchanged"
    afresh = run(pool_of(farm).each("train", lambda box: start_again(box, job))).results[0]
    assert (afresh.state, afresh.facts["attempts"]) == ("done", 2)
    until(pool_of(farm), "j1", "done")
    other = begin(pool_of(farm), shell(farm, "j1", "true", shots=1)).results[0]
    assert "another command" in str((other.error or {})["message"])


def test_a_failed_job_says_why_and_gets_another_attempt(
    make_farm: Any, pool_of: Any, fleet_cli: Any
) -> None:
    farm = make_farm("a")
    job = shell(farm, "bad", 'echo "went wrong" >&2; exit 3', resume="true")  # fmt: skip
    begin(pool_of(farm), job)
    progress = until(pool_of(farm), "bad", "failed")
    assert progress.exit_code == 3
    code, answer = fleet_cli("status", "-i", farm.inventory, "--job", "bad")
    assert code == 6 and "exit code 3" in answer["hosts"]["a"]["error"]["message"]
    assert (farm.boxes["a"].root / "jobs" / "bad" / "log").read_text() == "went wrong\n"
    begin(pool_of(farm), job)
    assert until(pool_of(farm), "bad", "failed").attempts == 2  # there is no `run` to resume
    (farm.boxes["a"].root / "jobs" / "bad" / "run").mkdir()
    (farm.boxes["a"].root / "jobs" / "bad" / "run" / "config.yaml").touch()
    begin(pool_of(farm), job)
    assert until(pool_of(farm), "bad", "done").attempts == 3
    assert count(farm, "bad") == 3


def test_a_reboot_is_noticed_and_the_job_goes_on(make_farm: Any, pool_of: Any) -> None:
    farm = make_farm("a")
    job = shell(farm, "boot", BEGUN + "sleep 60", resume="true")
    begin(pool_of(farm), job)
    assert until(pool_of(farm), "boot", "running").attempts == 1
    deadline = time.monotonic() + 10
    while not (farm.boxes["a"].root / "jobs" / "boot" / "run" / "config.yaml").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    farm.boxes["a"].reboot()
    assert states(pool_of(farm), "boot")["a"].state == "lost"
    outcome = run(wait(pool_of(farm), {"a": job}, Waiting(0.05)))
    result = outcome.results[0]
    assert (result.state, result.facts["attempts"]) == ("done", 2)
    assert run(wait(pool_of(farm), {"a": job}, Waiting(0.05))).results[0].state == "unchanged"
    assert count(farm, "boot") == 2


def test_a_reused_process_id_is_no_running_job(tmp_path: Path) -> None:
    folder = Path(agent_jobs.job_folder(str(tmp_path), "j"))
    folder.mkdir(parents=True)
    (folder / "pid").write_text(str(os.getpid()))  # alive, but not the runner
    assert agent_jobs.runner_pid(str(folder)) is None


def test_stop_asks_first(make_farm: Any, pool_of: Any, fleet_cli: Any) -> None:
    farm = make_farm("a")
    polite = shell(farm, "polite", 'trap "echo saved > run; exit 130" TERM; sleep 60 & wait')
    stubborn = shell(farm, "stubborn", 'trap "" TERM; while :; do sleep 0.1; done')
    for job in (polite, stubborn):
        begin(pool_of(farm), job)
        until(pool_of(farm), job.id, "running")
    time.sleep(0.3)  # the shells set their traps
    outcome = run(pool_of(farm).each("stop", lambda box: stop(box, "polite")))
    facts = outcome.results[0].facts
    assert (facts["job_state"], facts["killed"]) == ("stopped", False)
    assert (farm.boxes["a"].root / "jobs" / "polite" / "run").read_text() == "saved\n"
    code, answer = fleet_cli("stop", "-i", farm.inventory, "--job", "stubborn", "--grace", "0.3")
    assert code == 0 and answer["hosts"]["a"]["killed"] is True
    assert states(pool_of(farm), "stubborn")["a"].state == "stopped"
    code, answer = fleet_cli("stop", "-i", farm.inventory, "--job", "stubborn")
    assert (code, answer["unchanged"]) == (0, ["a"])
    assert fleet_cli("stop", "-i", farm.inventory, "--job", "never")[0] == 6


def test_follow_by_offset_whole_lines_only(make_farm: Any, pool_of: Any) -> None:
    farm = make_farm("a")
    begin(pool_of(farm), shell(farm, "f", "mkdir run"))
    until(pool_of(farm), "f", "done")
    metrics = farm.boxes["a"].root / "jobs" / "f" / "run" / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    known: dict[str, Progress] = {}
    states(pool_of(farm), "f", known)
    assert known["a"].lines == ['{"step": 1, "loss": 2.0}']
    with open(metrics, "a") as stream:
        stream.write('ss": 1.0}\nnot json\n')
    states(pool_of(farm), "f", known)
    assert known["a"].lines == ['{"step": 2, "loss": 1.0}', "not json"]
    assert known["a"].latest == {"step": 2, "loss": 1.0}
    states(pool_of(farm), "f", known)
    assert known["a"].lines == []
    metrics.write_text('{"step": 9}\n')  # begun again
    states(pool_of(farm), "f", known)
    assert known["a"].latest["step"] == 9


def test_logs_command(make_farm: Any, pool_of: Any, capfd: pytest.CaptureFixture[str]) -> None:
    from edgeladder.cli.app import main

    farm = make_farm("a", "b")
    begin(pool_of(farm), shell(farm, "l", 'printf "one\\n\\033[31mtwo\\n" >&2'))
    until(pool_of(farm), "l", "done")
    capfd.readouterr()
    assert main(["fleet", "logs", "-i", str(farm.inventory), "--job", "l"]) == 0
    out = capfd.readouterr().out
    assert "a: one\n" in out and "b: one\n" in out
    assert "\033" not in out  # a box may not steer the terminal


def test_logs_f_follows_until_all_have_ended(
    make_farm: Any, pool_of: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    from edgeladder.cli.app import main

    farm = make_farm("a", "b")
    write = 'mkdir run; for i in 1 2 3 4 5; do echo "{\\"step\\": $i}" >> run/metrics.jsonl; '
    begin(pool_of(farm), shell(farm, "f", write + "sleep 0.2; done"))
    capfd.readouterr()
    follow = ["fleet", "logs", "-f", "-i", str(farm.inventory), "--job", "f", "--poll", "0.1"]
    assert main(follow) == 0
    said = capfd.readouterr()
    for name in ("a", "b"):  # plain lines, and each state once in so short a time
        assert said.err.count(f"{name} running") == said.err.count(f"{name} done") == 1
        assert f"{name} done, attempt 1, -, step 5" in said.err
    assert "\033" not in said.err


def test_one_live_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    import pty
    import sys

    from edgeladder.fleet.console import Watch

    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    latest = {"phase": "\033[2Jtrain", "step": 7, "loss": 0.25}  # a box may not steer it
    with os.fdopen(theirs, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        with Watch() as watch:
            for state in ("running", "done"):
                watch({"a": Progress("a", state, latest=latest), "b": Progress("b", "running")})
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "0.2500" in text and "done" in text and "[2Jtrain" in text
    assert "\033[2J" not in text and "\033[" in text  # drawn over, not line after line


def test_a_hung_box_is_given_up_and_the_others_go_on(make_farm: Any, pool_of: Any) -> None:
    farm = make_farm("a", "hung", "c")
    farm.boxes["hung"].signal(signal.SIGSTOP)
    began = time.monotonic()
    outcome = begin(pool_of(farm, timeout=0.8, tries=2), shell(farm, "h", "true"))
    assert time.monotonic() - began < 15
    assert outcome.names("done") == ["a", "c"]
    assert (outcome.results[1].error or {}).get("kind") == "timeout", outcome.to_dict()
    farm.boxes["hung"].signal(signal.SIGCONT)
    outcome = begin(pool_of(farm), shell(farm, "h", "true"))
    assert outcome.names("done") == ["hung"] and outcome.names("unchanged") == ["a", "c"]


def test_patience_for_an_unreachable_box(make_farm: Any, pool_of: Any) -> None:
    farm = make_farm("a", "away")
    farm.boxes["away"].stop()
    jobs = {name: shell(farm, "p", "true") for name in ("a", "away")}
    outcome = run(wait(pool_of(farm), jobs, Waiting(0.05, 0.3)))
    assert outcome.names("done") == ["a"]
    assert (outcome.results[1].error or {})["kind"] == "unreachable"


def test_systemd_run_where_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for systemd: the job must run as a unit of the user's lingering manager."""
    programs = tmp_path / "bin"
    programs.mkdir()
    calls = tmp_path / "calls"
    for name, body in {
        "loginctl": "echo Linger=yes",
        "systemd-run": 'while [ "${1#--}" != "$1" ]; do '
        '[ "$1" = --unit ] && shift; [ "$1" = --wait ] && once=1; shift; done; '
        '[ -n "$once" ] && exec "$@"; setsid "$@" >/dev/null 2>&1 &',
    }.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\n{body}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    root = str(tmp_path / "root")
    own = tmp_path / "own" / "edgeladder"
    own.parent.mkdir()
    own.write_text("#!/bin/sh\necho ran\n")
    own.chmod(0o755)
    (tmp_path / "root" / "trees" / "bundle" / DIGEST).mkdir(parents=True)
    request = StartRequest("s", TrainTask(str(own), "/data", TrainOptions(DIGEST)))
    assert agent_jobs.start(root, request).job.via == "systemd-run"
    assert "--unit edgeladder-" in calls.read_text()
    deadline = time.monotonic() + 10
    while agent_jobs.state(root, "s").state != "done":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (programs / "loginctl").write_text("#!/bin/sh\necho Linger=no; [ $1 != enable-linger ]\n")
    assert agent_jobs.user_systemd() is None


def test_the_agent_speaks_python_3_8() -> None:
    folder = Path(next(iter(agent_package.__path__)))
    sources = sorted(folder.glob("*.py"))
    assert len(sources) >= 6
    for path in sources:
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        imported = {
            name.split(".")[0]
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not imported & {"numpy", "pydantic", "yaml", "psutil"}
        text = path.read_text()
        assert "from edgeladder" not in text.replace("from edgeladder.fleet.box", "")
