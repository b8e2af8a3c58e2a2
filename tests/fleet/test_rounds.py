"""Federated rounds over real sshd boxes with faults: an exact outcome, then what is missing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgeladder.core.bundle import Bundle
from edgeladder.core.config import HeadConfig
from edgeladder.core.yaml_config import library, load_profile
from edgeladder.fleet import fleet_page
from edgeladder.fleet.averaging import HEADLESS
from edgeladder.fleet.box.records import TrainOptions
from edgeladder.fleet.host_pool import HostPool, run
from edgeladder.fleet.outcomes import FleetOutcome, HostResult
from edgeladder.fleet.remote_jobs import Waiting
from edgeladder.fleet.rounds import RoundOptions, rounds

QUICK = Waiting(poll_seconds=0.1, patience_seconds=1.0)


def attempts(box: Any, job: str) -> int:
    return len(list((box.root / "jobs" / job).glob("attempt-*")))


def go(
    pool: HostPool, bundle: Bundle, out: Path, count: int = 2, waiting: Waiting = QUICK
) -> FleetOutcome:
    options = RoundOptions("fed", count, out, waiting=waiting)
    return run(rounds(pool, bundle, TrainOptions(bundle.digest), options))


def test_two_rounds_average_and_go_on_from_it(
    make_farm: Any, pool_of: Any, bundle: Bundle, tmp_path: Path
) -> None:
    farm = make_farm("a", "b", "c")
    for number, box in enumerate(farm.boxes.values()):
        box.behave(pictures=10 * (number + 1), shift=float(number))
    out = tmp_path / "out"
    outcome = go(pool_of(farm), bundle, out)
    assert outcome.names("done") == ["a", "b", "c"] and not outcome.failed
    assert [r["done"] for r in outcome.facts["rounds"]] == [["a", "b", "c"]] * 2
    initial = load_file(bundle.path("ladder/init.safetensors"))
    shift = (10 * 0 + 20 * 1 + 30 * 2) / 60
    for number in (1, 2):
        found = load_file(out / f"fed-r{number}" / "average" / "adapter.safetensors")
        for name, value in initial.items():
            np.testing.assert_allclose(found[name], value + number * shift, rtol=1e-5)
    again = go(pool_of(farm), bundle, out)
    assert again.names("unchanged") == ["a", "b", "c"]
    for box in farm.boxes.values():
        assert attempts(box, "fed-r1") == attempts(box, "fed-r2") == 1


def test_faults_then_only_what_is_missing(
    make_farm: Any, pool_of: Any, bundle: Bundle, tmp_path: Path
) -> None:
    """Killed connections mid-push and mid-train, a reboot, a wrong key, a hung box, NaN."""
    names = ("good", "cut", "reboots", "imposter", "hung", "nan")
    farm = make_farm(*names, proxied=True)
    boxes = farm.boxes
    boxes["cut"].proxy.break_after = 600_000  # mid-push
    boxes["cut"].behave(steps=40, step_seconds=0.05)
    boxes["reboots"].behave(steps=60, step_seconds=0.05)
    boxes["nan"].behave(nan=True)
    boxes["imposter"].stop()
    boxes["imposter"].new_host_key()
    boxes["imposter"].start()
    boxes["hung"].proxy.silent = True

    def trouble() -> None:
        mark = boxes["reboots"].root / "jobs" / "fed-r1" / "run" / "checkpoints" / "step.json"
        while not mark.exists():
            time.sleep(0.02)
        time.sleep(0.3)
        boxes["reboots"].reboot()
        for _ in range(8):  # mid-train
            boxes["cut"].proxy.cut()
            time.sleep(0.15)

    thread = threading.Thread(target=trouble)
    thread.start()
    out = tmp_path / "out"
    pool = pool_of(farm, timeout=3, tries=2)
    outcome = go(pool, bundle, out, count=1, waiting=Waiting(0.1, 30))
    thread.join()
    kinds = {r.host: (r.error or {}).get("kind") for r in outcome.results}
    assert kinds == {
        "good": None, "cut": None, "reboots": None,
        "imposter": "hostkey", "hung": "timeout", "nan": "integrity",
    }  # fmt: skip
    assert "NaN" in str(outcome.results[names.index("nan")].error)
    assert outcome.error() is not None and outcome.error().exit_code == 6
    record = json.loads((out / "fed-r1" / "average" / "aggregate.json").read_text())
    assert set(record["weights"]) == {"good", "cut", "reboots"}
    assert attempts(boxes["reboots"], "fed-r1") == 2 and attempts(boxes["cut"], "fed-r1") == 1
    page, rows = fleet_page.write(out, "fed-r1")
    text = page.read_text()
    failures = {row.host: row.failure for row in rows if row.failure}
    assert {row.host for row in rows} == set(names)  # those too of which nothing came
    assert set(failures) == {"imposter", "hung", "nan"}
    assert "host key changed" in failures["imposter"] and "host key changed" in text
    assert "50.0 %" in text and "75.0 %" in text and "NaN" in text and "200 MB" in text
    metrics = out / "fed-r1" / "hosts" / "reboots" / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(1, 61))  # gone on, nothing trained twice

    boxes["imposter"].proxy.close()  # the real box is back, with its own key
    boxes["imposter"].proxy = None
    farm.write_inventory()
    farm.pin()
    boxes["hung"].proxy.silent = False
    boxes["nan"].behave()
    sent = {name: boxes[name].proxy.towards_box for name in ("good", "cut", "reboots")}
    outcome = go(pool_of(farm, timeout=5), bundle, out, count=1)
    assert not outcome.failed
    record = json.loads((out / "fed-r1" / "average" / "aggregate.json").read_text())
    assert set(record["weights"]) == set(names)
    assert attempts(boxes["nan"], "fed-r1") == 2  # a refused adapter is missing too
    assert attempts(boxes["good"], "fed-r1") == attempts(boxes["cut"], "fed-r1") == 1
    assert attempts(boxes["hung"], "fed-r1") == attempts(boxes["imposter"], "fed-r1") == 1
    for name, before in sent.items():
        assert boxes[name].proxy.towards_box - before < 200_000  # the bundle has 1.5 MB
    rows = fleet_page.write(out, "fed-r1")[1]
    assert {row.host for row in rows} == set(names)
    assert not any(row.failure for row in rows)


def test_too_few_boxes_make_no_round(
    make_farm: Any, pool_of: Any, bundle: Bundle, tmp_path: Path
) -> None:
    farm = make_farm("a", "b", "c")
    for name in ("b", "c"):
        farm.boxes[name].behave(exit=4)
    outcome = go(pool_of(farm), bundle, tmp_path / "out")
    error = outcome.error()
    assert error.exit_code == 6 and "1 of 3 hosts have an adapter, 2 are needed" in error.message
    assert outcome.names("done") == ["a"] and outcome.failed == ["b", "c"]
    assert "exit code 4" in str(outcome.results[1].error)
    assert not (tmp_path / "out" / "fed-r1" / "average").exists()
    for name in ("b", "c"):
        farm.boxes[name].behave()
    outcome = go(pool_of(farm), bundle, tmp_path / "out")
    assert not outcome.failed
    assert attempts(farm.boxes["a"], "fed-r1") == 1 and attempts(farm.boxes["b"], "fed-r1") == 2


def test_every_profile_trains_without_its_head() -> None:
    for name in library("profiles"):
        assert load_profile(name, [HEADLESS]).head == HeadConfig(known=False)


def test_never_more_connections_than_parallel(make_farm: Any, pool_of: Any) -> None:
    farm = make_farm("a", "b", "c", "d", "e")
    pool = pool_of(farm, parallel=2)
    at_once: list[int] = []
    now = 0

    async def work(box: Any) -> Any:
        nonlocal now
        now += 1
        at_once.append(now)
        await asyncio.sleep(0.05)
        now -= 1
        return HostResult(box.host.name, "done")

    outcome = run(pool.each("x", work))
    assert len(outcome.names("done")) == 5 and max(at_once) == 2


def test_the_whole_command_line(
    make_farm: Any, bundle: Bundle, tmp_path: Path, fleet_cli: Any
) -> None:
    """push, train, pull, aggregate, evaluate and report as a person would type them."""
    farm = make_farm("a", "b")
    farm.boxes["b"].behave(shift=3.0, pictures=30)
    common = ("-i", farm.inventory)
    of_bundle = ("--bundle", bundle.folder)
    out = ("--out", tmp_path / "out")
    code, answer = fleet_cli("train", *common, *of_bundle)
    assert code == 6 and "fleet push" in answer["hosts"]["a"]["error"]["remedy"]
    assert fleet_cli("push", *common, *of_bundle)[0] == 0
    code, answer = fleet_cli("train", *common, *of_bundle, "--wait", "--poll", "0.1")
    assert code == 0 and answer["done"] == ["a", "b"]
    job = answer["job"]
    code, answer = fleet_cli("train", *common, *of_bundle)
    assert code == 0 and answer["unchanged"] == ["a", "b"] and answer["job"] == job
    named = ("--job", job)
    assert fleet_cli("status", *common, *named)[0] == 0
    assert fleet_cli("logs", *common, *named)[0] == 0
    assert fleet_cli("pull", *common, *named, *of_bundle, *out)[0] == 0
    code, answer = fleet_cli("aggregate", *common, *named, *of_bundle, *out)
    assert code == 0 and answer["hosts"]["b"]["weight"] == 0.5  # of two
    average = tmp_path / "out" / job / "average"
    code, answer = fleet_cli(
        "evaluate", *common, *of_bundle, *out, "--adapter", average, "--poll", "0.1"
    )
    values = load_file(average / "adapter.safetensors")
    expected = float(np.mean(np.concatenate([v.ravel() for v in values.values()])))
    assert (
        code == 0 and answer["accuracy"] == pytest.approx(expected / 1000) and answer["count"] == 8
    )
    code, answer = fleet_cli("report", *named, *out)
    assert code == 0 and Path(answer["report"]).is_file()
    assert fleet_cli("doctor", *common)[0] == 0
    code, answer = fleet_cli("push", *common, *of_bundle, "--limit", "nobody")
    assert code == 2 and answer["error"]["type"] == "ConfigError"


@pytest.mark.parametrize("rounds_asked", ["", "1"])
def test_the_script_of_usual_rounds(
    make_farm: Any, bundle: Bundle, program: Path, tmp_path: Path, rounds_asked: str
) -> None:
    farm = make_farm("a", "b", "broken")
    farm.boxes["broken"].behave(exit=4)
    script = Path(__file__).parents[2] / "tools" / "fleet" / "usual_rounds"
    done = subprocess.run(
        [script, farm.inventory, bundle.folder, "spring", "--shots", "4"],
        env={**os.environ, "EDGELADDER": str(program), "OUT": str(tmp_path / "out"),
             "POLL": "0.2", "ROUNDS": rounds_asked},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    job = "spring-r1" if rounds_asked else "spring"
    assert (tmp_path / "out" / job / "report.html").is_file()
    assert "exit code 4" in done.stdout
    command = json.loads((farm.boxes["a"].root / "jobs" / job / "job.json").read_text())["command"]
    assert command[command.index("--shots") + 1] == "4"
