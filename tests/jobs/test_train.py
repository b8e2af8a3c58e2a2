"""The whole run on the tiny bundle: plan, precompute, train, evaluate, resume, refuse, survive."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgeladder.budget import meter
from edgeladder.core.errors import BudgetError, ConfigError, IntegrityError
from edgeladder.core.plan import PhasePlan, Surrounding
from edgeladder.core.records import to_json
from edgeladder.core.request import TrainRequest
from edgeladder.jobs import plan_phase, supervisor
from edgeladder.jobs.run_directory import RunDirectory, read_metrics
from edgeladder.jobs.train_phase import open_engine_named

MB = 1_000_000
STEPS = ["train.steps=12", "train.checkpoint_steps=4"]


@pytest.fixture(scope="module")
def baseline_folder(tmp_path_factory):
    """The baseline is measured once for this file, and not into the user's own cache."""
    folder = tmp_path_factory.mktemp("xdg")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture
def ask(bundle_folder, picture_folder, tmp_path, baseline_folder):
    """A request on the tiny bundle."""

    def make(run="run", **changes):
        values = {
            "bundle": str(bundle_folder),
            "data": str(picture_folder),
            "cache": str(tmp_path / "cache"),
            "run": str(tmp_path / run),
            "budget_bytes": 900 * MB,
            "overrides": STEPS,
            "engine": "stock",
            "threads": 1,
            "limit": "none",
            **changes,
        }
        return TrainRequest(**values)

    return make


def adapter(request):
    return load_file(Path(request.run) / "adapter.safetensors")


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def test_a_run_from_pictures_to_accuracy(ask):
    request = ask(limit="auto")
    phases = []
    result = to_json(supervisor.train(request, lambda phase, *more: phases.append(phase)))
    assert result.keys() >= {
        *("run", "engine", "steps", "seed", "accuracy", "memory", "throughput"),
        *("resumed_from", "skipped_inputs"),
    }
    assert result["steps"] == 12 and result["resumed_from"] is None
    assert result["accuracy"]["split"] == "test"
    memory = result["memory"]
    assert memory["budget_bytes"] == 900 * MB and memory["enforcement"] != "none"
    assert set(memory["phases"]) == {"precompute", "train", "evaluate"}
    for phase in memory["phases"].values():
        assert 0 < phase["measured_peak_bytes"] <= 900 * MB
    assert list(dict.fromkeys(phases))[-3:] == ["precompute", "train", "evaluate"]
    folder = Path(request.run)
    assert {path.name for path in folder.iterdir()} >= {
        *("config.yaml", "plan.json", "environment.json", "metrics.jsonl", "worker.log"),
        *("adapter.safetensors", "adapter.json", "evaluation.json", "result.json"),
    }
    assert not (folder / "checkpoints").exists()
    log = (folder / "worker.log").read_text()
    for phase in ("plan", "precompute", "train", "evaluate"):
        assert f"{phase}: begins, edgeladder " in log and f"{phase}: done; " in log
    assert "loaded: numpy " in log
    kinds = {record["kind"] for record in read_metrics(folder / "metrics.jsonl")}
    assert kinds >= {"start", "limit", "step", "checkpoint", "phase", "result"}
    assert json.loads((folder / "result.json").read_text())["accuracy"] == result["accuracy"]
    again = supervisor.train(ask("second"), None)
    assert again.cache.new == 0 and same(adapter(request), adapter(ask("second")))
    # planning found everything in the cache: no worker was started for it
    assert set(again.memory.phases) == {"train", "evaluate"} and again.cache.reused
    second = Path(ask("second").run)
    assert "precompute: begins" not in (second / "worker.log").read_text()
    kept = [(run / "selection.safetensors").read_bytes() for run in (folder, second)]
    assert kept[0] == kept[1]


def test_resumed_after_sigterm_and_kill_nine_equals_uninterrupted(ask, tmp_path):
    supervisor.train(ask("whole", overrides=["train.steps=60", "train.checkpoint_steps=5"]))
    cut = ask("cut", overrides=["train.steps=60", "train.checkpoint_steps=5"])
    told = json.dumps({"json": True, "request": to_json(cut)})
    metrics = Path(cut.run) / "metrics.jsonl"

    def start_and_wait(request_text, record):
        process = subprocess.Popen(
            [sys.executable, "-m", "edgeladder.jobs", request_text],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        before = sum(r["kind"] == record for r in read_metrics(metrics)) if metrics.exists() else 0
        while process.poll() is None:
            if metrics.exists() and before + 3 <= sum(
                r["kind"] == record for r in read_metrics(metrics)
            ):
                return process
            time.sleep(0.002)
        return process

    process = start_and_wait(told, "step")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    if process.returncode:  # a machine fast enough may have been done
        assert process.returncode == 130
        remedy = json.loads(output)["error"]["remedy"]
        assert remedy == f"go on with: edgeladder train --resume {cut.run}"
        resumed = {**to_json(cut), "resume": True, "bundle": "", "data": ""}
        told = json.dumps({"json": True, "request": resumed})
        process = start_and_wait(told, "step")
        for pid in meter.tree(process.pid)[::-1]:  # worker and supervisor, as a power cut would
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        result = supervisor.train(TrainRequest(run=cut.run, resume=True, limit="none"))
        assert result.resumed_from is not None and result.steps == 60
    assert same(adapter(cut), adapter(ask("whole")))


def test_a_budget_too_small_is_refused_with_the_smallest_that_fits(ask):
    refused = ask("refused", budget_bytes=40 * MB)
    with pytest.raises(BudgetError, match="the budget is 40 MB") as caught:
        supervisor.train(refused)
    least = caught.value.minimum_budget_bytes
    assert caught.value.exit_code == 3 and f"--budget {least // MB}MB" in caught.value.remedy
    assert not Path(refused.run).exists()
    planned = supervisor.plan(ask(budget_bytes=40 * MB))
    assert not planned.fits and abs(planned.minimum_budget_bytes - least) <= 5 * MB
    assert supervisor.plan(ask(budget_bytes=planned.minimum_budget_bytes + 10 * MB)).fits


def test_a_surrounding_cgroup_smaller_than_the_budget_is_respected_and_said(ask, monkeypatch):
    """The plan, the record of the run and the answer: all name it."""
    least = supervisor.plan(ask()).minimum_budget_bytes
    around = Surrounding("/sys/fs/cgroup/box", least + 30 * MB, 10 * MB)
    monkeypatch.setattr(supervisor, "surrounding", lambda own_bytes: around)
    request = ask("inside", budget_bytes=4_000 * MB)
    decided = supervisor.plan(request)
    assert decided.budget_bytes == least + 20 * MB and decided.surrounding == around
    result = supervisor.train(request)
    assert result.memory.budget_bytes == least + 20 * MB
    assert result.memory.surrounding == around
    (record,) = (
        record
        for record in read_metrics(Path(request.run) / "metrics.jsonl")
        if record["kind"] == "surrounding"
    )
    assert record["limit_bytes"] == around.limit_bytes and record["others_bytes"] == 10 * MB
    monkeypatch.setattr(
        supervisor, "surrounding", lambda own_bytes: Surrounding("/sys/fs/cgroup/box", 40 * MB, 0)
    )
    with pytest.raises(BudgetError, match="/sys/fs/cgroup/box is limited to 40 MB"):
        supervisor.train(ask("beside", budget_bytes=4_000 * MB))


def cached(folder):
    """All that is stored of every sample, by store and key."""
    found = {}
    for path in Path(folder).rglob("0*.safetensors"):
        columns = load_file(path)
        for row, key in enumerate(columns["keys"]):
            content = {name: values[row].tobytes() for name, values in columns.items()}
            found[path.parent.name, key.tobytes()] = content
    return found


def test_the_cache_does_not_depend_on_the_budget(ask, tmp_path):
    ample = ask(cache=str(tmp_path / "ample"))
    least = supervisor.plan(ample).phases["precompute"].planned_peak_bytes // 2
    least = max(least, supervisor.plan(ample).minimum_budget_bytes)
    small = ask(cache=str(tmp_path / "small"), budget_bytes=least)
    plans = [supervisor.plan(request).phases["precompute"] for request in (ample, small)]
    assert plans[0].whole and not plans[1].whole
    for request in (ample, small):
        supervisor.precompute(request)
    assert cached(tmp_path / "ample") == cached(tmp_path / "small") != {}


def test_the_chunk_does_not_change_the_result(ask):
    supervisor.train(ask("fused", mode="fused"))
    supervisor.train(ask("chunked", mode="chunked", chunk=2))
    fused, chunked = adapter(ask("fused")), adapter(ask("chunked"))
    for name, value in fused.items():
        np.testing.assert_allclose(chunked[name], value, atol=1e-5, err_msg=name)


def test_what_cannot_be_changed_by_training_is_said(ask):
    with pytest.raises(ConfigError, match=r"ladder\.width of profile") as caught:
        supervisor.train(ask(overrides=["ladder.width=64"]))
    assert "edgeladder export --profile" in caught.value.remedy
    with pytest.raises(ConfigError, match="did you mean 'batch'"):
        supervisor.train(ask(overrides=["train.bach=3"]))


def test_weight_averaging_ends_between_the_steps(ask):
    plain, averaged = ask("plain"), ask("averaged", overrides=[*STEPS, "train.average=0.9"])
    for request in (plain, averaged):
        supervisor.train(request)
    left, right = adapter(plain), adapter(averaged)
    assert any(not np.array_equal(left[name], right[name]) for name in left)


def test_a_shard_damaged_while_training_runs_teaches_nothing(ask, tmp_path, monkeypatch):
    """The step that would read it stops the run; healed and resumed, it ends with the same bits."""
    monkeypatch.setenv("EDGELADDER_DAMAGE", str(tmp_path / "damaged"))
    request = ask("damaged-run", engine="damaging_engine:open_damaging")
    with pytest.raises(IntegrityError, match="2 cache shards are damaged") as caught:
        supervisor.train(request)
    assert caught.value.exit_code == 5
    records = list(read_metrics(Path(request.run) / "metrics.jsonl"))
    assert max(record["step"] for record in records if record["kind"] == "step") == 5
    with pytest.raises(ConfigError, match="names an engine of its own"):
        supervisor.train(TrainRequest(run=request.run, resume=True, limit="none"))
    again = TrainRequest(run=request.run, resume=True, limit="none", engine=request.engine)
    result = supervisor.train(again)
    assert result.resumed_from == 4 and result.steps == 12 and result.cache.new > 0
    supervisor.train(ask("whole"))
    assert same(adapter(request), adapter(ask("whole")))


@pytest.mark.parametrize("name", ["no_such_module:open", ":", "os:no_such", "..:x", "json:"])
def test_an_engine_that_is_nowhere_is_said(name):
    job = SimpleNamespace(
        engine=name, threads=1, plan=SimpleNamespace(phases={"train": PhasePlan()}),
        profile=SimpleNamespace(train=None, loss=None),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="no engine"):
        open_engine_named(job, None, PhasePlan())


def test_condensing_a_run_imports_nothing_that_its_file_names(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").touch()
    saved = SimpleNamespace(request=TrainRequest(engine="evil:run", seed=7))
    monkeypatch.setattr(plan_phase, "load_adapter", lambda path: None)
    monkeypatch.setattr(plan_phase, "read_config", lambda path: saved)
    found = plan_phase._condensing(TrainRequest(), RunDirectory(tmp_path))
    assert (found.engine, found.seed) == ("auto", 7)


def test_a_leaking_engine_under_budgets_just_above_the_smallest(ask, tmp_path, monkeypatch):
    """A few of the stress test's budgets; `tools/bench/stress_budget.py` runs twenty."""
    bench = Path(__file__).parents[2] / "tools" / "bench"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(bench), os.environ["PYTHONPATH"]]))
    supervisor.train(ask("free"))
    own = meter.private(os.getpid())
    for number, (above, leak) in enumerate([(30, 6), (10, 40)]):
        budget = supervisor.plan(ask()).minimum_budget_bytes + above * MB
        monkeypatch.setenv("EDGELADDER_LEAK", str(leak * MB))
        monkeypatch.setenv("EDGELADDER_BALLOON", str(10 * MB))
        request = ask(
            f"run{number}", engine="troubled_engine:open", budget_bytes=budget,
            limit="auto", restarts=4,
        )  # fmt: skip
        refusal = ""
        try:
            supervisor.train(request)
        except BudgetError as error:
            refusal = error.message
        finally:
            records = list(read_metrics(Path(request.run) / "metrics.jsonl"))
            peaks = [r["sampled_peak_bytes"] for r in records if r["kind"] == "phase"]
            assert max(peaks) <= budget + max(0, meter.private(os.getpid()) - own)
            lost = [
                r["last_step"] - r["checkpoint_step"] for r in records if r["kind"] == "restart"
            ]
            assert all(steps <= 1 for steps in lost[1:])
        if refusal:
            assert "ran out of memory" in refusal
            continue
        for name, value in adapter(ask("free")).items():
            np.testing.assert_allclose(adapter(request)[name], value, atol=1e-5)
