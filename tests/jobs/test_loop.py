"""Resumed equals uninterrupted, bit for bit, however and whenever training stopped."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from numpy_engine import NumpyEngine, RandomBatches

from edgeladder.core.errors import EdgeLadderError
from edgeladder.jobs.checkpoint import Checkpoints
from edgeladder.jobs.control import Control
from edgeladder.jobs.loop import LoopSettings, TrainLoop
from edgeladder.jobs.run_directory import MetricsLog, read_metrics
from edgeladder.jobs.schedule import learning_rate

STEPS = 40


def make(folder, control=None, engine=None, **changes):
    settings = {
        "steps": STEPS,
        "batch": 8,
        "learning_rate": 1e-2,
        "warmup_steps": 4,
        "checkpoint_steps": 5,
        **changes,
    }
    records = []
    loop = TrainLoop(
        engine or NumpyEngine(),
        RandomBatches(),
        LoopSettings(**settings),
        Checkpoints(folder),
        records.append,
        control or Control(),
    )
    return loop, records


def same(left, right):
    assert left.keys() == right.keys()
    return all(np.array_equal(left[key], right[key]) for key in left)


def test_training_learns(tmp_path):
    loop, records = make(tmp_path)
    result = loop.run()
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    assert result.outcome == "done" and result.step == STEPS == len(losses)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_schedule_rises_then_falls_to_almost_nothing():
    rates = [learning_rate(step, 100, 10, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert 0 < rates[-1] < 1e-3


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("order", ["stop", "restart"])
def test_resumed_equals_uninterrupted(tmp_path, average, order):
    whole, _ = make(tmp_path / "whole", average=average)
    whole.run()
    for stop_at in (0, 1, 7, 39):
        folder = tmp_path / f"cut-{stop_at}"
        control = Control()
        cut, _ = make(folder, control, average=average)
        cut.record = lambda record, c=control, s=stop_at: (
            c.order(order) if record["kind"] == "step" and record["step"] == s else None
        )
        if stop_at == 0:
            control.order(order)
        assert cut.run().outcome == order and cut.step == stop_at
        again, records = make(folder, average=average)
        assert again.resume() == stop_at
        again.run()
        assert same(again.engine.state(), whole.engine.state())
        again.apply_average()
        whole_average = whole.average or whole.engine.parameters()
        assert same(again.engine.parameters(), whole_average)


def test_a_damaged_checkpoint_costs_its_steps_and_is_said(tmp_path):
    whole, _ = make(tmp_path / "whole")
    whole.run()
    control = Control()
    cut, _ = make(tmp_path / "cut", control)
    cut.record = lambda record: control.order("stop") if record.get("step") == 12 else None
    assert cut.run().step == 12
    newest = max((tmp_path / "cut").glob("step-*"))
    damaged = newest.read_bytes().replace(b'step\\": 12', b'step\\": 13')
    assert damaged != newest.read_bytes()
    newest.write_bytes(damaged)
    again, records = make(tmp_path / "cut")
    assert again.resume() == 10
    said = [record for record in records if record["kind"] == "damaged_checkpoint"]
    assert said == [{"kind": "damaged_checkpoint", "files": [newest.name]}]
    again.run()
    assert same(again.engine.state(), whole.engine.state())


def test_kill_nine_at_random_moments(tmp_path):
    """A process killed again and again ends with the bits of one that never was."""
    script = tmp_path / "train.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from test_loop import make\n"
        "from edgeladder.jobs.run_directory import MetricsLog\n"
        "folder = Path(sys.argv[1])\n"
        "from numpy_engine import NumpyEngine\n"
        "loop, _ = make(folder / 'checkpoints', engine=NumpyEngine(delay=0.01),"
        " checkpoint_steps=1, steps=60)\n"
        "loop.record = MetricsLog(folder / 'metrics.jsonl')\n"
        "loop.resume()\n"
        "loop.run()\n"
        "np.save(folder / 'final.npy', loop.engine.flat)\n"
    )
    chance = random.Random(5)
    killed = tmp_path / "killed"
    whole = tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
    kills = 0
    for _ in range(60):
        process = subprocess.Popen([sys.executable, str(script), str(killed)])
        metrics = killed / "metrics.jsonl"
        before = metrics.stat().st_size if metrics.exists() else 0
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size > before):
            time.sleep(0.001)
        if kills < 5:
            time.sleep(chance.uniform(0, 0.15))
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
        if process.wait() == 0:
            break
    assert kills == 5
    subprocess.run([sys.executable, str(script), str(whole)], check=True)
    assert np.array_equal(np.load(killed / "final.npy"), np.load(whole / "final.npy"))
    steps = {r["step"]: r["loss"] for r in read_metrics(killed / "metrics.jsonl") if "loss" in r}
    reference = {r["step"]: r["loss"] for r in read_metrics(whole / "metrics.jsonl") if "loss" in r}
    assert steps == reference and len(steps) == 60


def test_a_torn_newest_generation_falls_back(tmp_path):
    whole, _ = make(tmp_path / "whole")
    whole.run()
    loop, _ = make(tmp_path / "torn", steps=STEPS)
    loop.run()
    newest = sorted((tmp_path / "torn").glob("step-*"))[-1]
    data = bytearray(newest.read_bytes())
    data[-3] ^= 1
    newest.write_bytes(data)
    again, _ = make(tmp_path / "torn")
    assert again.resume() == 35
    again.run()
    assert same(again.engine.state(), whole.engine.state())


def test_halving_the_chunk_changes_nothing_that_matters(tmp_path):
    whole, _ = make(tmp_path / "whole")
    whole.run()
    control = Control()
    loop, records = make(tmp_path / "halved", control)
    loop.record = lambda record: (
        records.append(record),
        control.order("halve") if record["kind"] == "step" and record["step"] in (3, 9) else None,
    )
    result = loop.run()
    assert result.chunk == 2 and {None, 4, 2} == set(loop.engine.chunks_seen)
    np.testing.assert_allclose(loop.engine.flat, whole.engine.flat, atol=1e-5)
    # from the first order on every step has a checkpoint: a kill then costs one step at most
    saved = {record["step"] for record in records if record["kind"] == "checkpoint"}
    assert set(range(3, 30)) <= saved


def test_trim_and_checkpoint_orders(tmp_path):
    control = Control()
    loop, records = make(tmp_path, control, checkpoint_steps=1000)
    for order in ("trim", "checkpoint", "trim"):
        control.order(order)
    loop.run()
    assert loop.batches.trimmed == 1
    assert records[0]["kind"] == "checkpoint" and records[0]["step"] == 0


def diverging(folder, above, **changes):
    """A loop whose loss is NaN, and whose parameters are, where the rate is above a bound."""
    loop, records = make(folder, warmup_steps=0, **changes)
    true_step = loop.engine.step

    def step(inputs, rate):
        result = true_step(inputs, rate)
        if loop.step < 6 or rate <= above:
            return result
        loop.engine.flat[:] = np.nan
        return type(result)(float("nan"), 1.0)

    loop.engine.step = step
    return loop, records


def test_divergence_goes_back_and_lowers_the_rate(tmp_path):
    loop, records = diverging(tmp_path / "a", above=0.003)
    assert loop.run().outcome == "done"
    told = [(r["step"], r["to"], r["rate_scale"]) for r in records if r["kind"] == "rollback"]
    assert told == [(6, 5, 0.5), (6, 5, 0.25)]
    assert np.isfinite(loop.engine.flat).all() and loop.step == STEPS
    # killed after it went back, and resumed: the same bits
    killed, _ = diverging(tmp_path / "b", above=0.003, steps=STEPS)
    killed.control = Control()
    stopped = iter([None] * 9 + ["stop"])
    killed._obey = lambda: next(stopped, None)
    killed.run()
    again, _ = diverging(tmp_path / "b", above=0.003)
    assert again.resume() > 0
    again.run()
    assert np.array_equal(again.engine.flat, loop.engine.flat)


def test_divergence_before_the_first_checkpoint_goes_back_to_the_start(tmp_path):
    loop, records = diverging(tmp_path, above=0.006, checkpoint_steps=50)
    assert loop.run().outcome == "done"
    assert [r["to"] for r in records if r["kind"] == "rollback"] == [0]


def test_divergence_gives_up_after_three_with_the_last_good_state(tmp_path):
    loop, records = diverging(tmp_path, above=0.0, checkpoint_steps=1)
    with pytest.raises(EdgeLadderError, match="diverged 4 times") as caught:
        loop.run()
    assert caught.value.exit_code == 2 and "learning_rate=0.001" in caught.value.remedy
    assert sum(r["kind"] == "rollback" for r in records) == 3
    assert np.isfinite(loop.engine.flat).all()
    again, _ = make(tmp_path)
    assert again.resume() == loop.step


def test_two_generations_and_no_strays(tmp_path):
    (tmp_path / ".step-000000001.safetensors.77.tmp").write_bytes(b"torn")
    loop, _ = make(tmp_path)
    loop.resume()
    loop.run()
    assert sorted(os.listdir(tmp_path)) == [
        "step-000000035.safetensors",
        "step-000000040.safetensors",
    ]


def test_metrics_log_survives_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 1}\n{"kind": "st')
    log = MetricsLog(path)
    log({"kind": "step", "step": 2})
    log.close()
    assert [record["step"] for record in read_metrics(path)] == [1, 2]
    assert json.loads(path.read_text().splitlines()[-1])["kind"] == "step"
