"""Quantized, condensed cross prompts that begin as prototypes: all of it on real engines."""

from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from edgeladder.cli.app import main
from edgeladder.core.bundle import Bundle
from edgeladder.core.config import LossConfig, TrainConfig
from edgeladder.core.errors import ConfigError
from edgeladder.core.records import to_json
from edgeladder.core.request import TrainRequest
from edgeladder.core.yaml_config import load_profile
from edgeladder.host.export import ExportOptions, export
from edgeladder.host.model.prompts.cross import CrossPrompts
from edgeladder.jobs import plan_phase as prepare
from edgeladder.jobs.checkpoint import Checkpoints
from edgeladder.jobs.codebook import Codebook
from edgeladder.jobs.condensation import Condense, keep, losses, scores
from edgeladder.jobs.control import Control
from edgeladder.jobs.loop import LoopSettings, TrainLoop
from edgeladder.jobs.prompt_dropout import PromptDropout
from edgeladder.jobs.prototypes import initial_prompts
from edgeladder.runtime.adapter import adapter_of, load_adapter, save_adapter
from edgeladder.runtime.deployment import deploy
from edgeladder.runtime.engine import StepPlan, open_engine
from edgeladder.runtime.evaluation import evaluate
from edgeladder.runtime.ladder_encoder import Encoder
from edgeladder.runtime.logits import ClassLogits
from edgeladder.runtime.prompt_storage import finalize, reactivate
from tests.jobs.here import run
from tests.make_bundle import CLASSES, register_model
from tests.runtime.engine.problem import problem
from tools.bench import condense as condense_bench

NAMES = CrossPrompts.tensors()
STEPS, AT = 12, 8
COMBINED = [
    "ladder.prompts.kind=cross",
    "ladder.prompts.length=4",
    "ladder.prompts.bits=1",
    "ladder.prompts.keep=0.3",
    "ladder.prompts.couple=false",
    "ladder.prompts.initialize=prototypes",
    "ladder.prompts.dropout=0.2",
    "ladder.prompts.cross_weights=frozen",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with everything at once."""
    return export(
        register_model(),
        "none",
        load_profile("tiny", COMBINED),
        ExportOptions(CLASSES),
        out=tmp_path_factory.mktemp("methods") / "bundle",
    ).folder


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder)


class Batches:
    """Four problems in turn."""

    classes = 5

    def __init__(self, bundle):
        self.bundle, self.position = bundle, 0

    def next(self):
        self.position += 1
        return problem(self.bundle, seed=self.position % 4)

    def state(self):
        return {"position": self.position}

    def load_state(self, state):
        self.position = state["position"]

    def trim(self):
        pass


def opened(bundle, plan=None, name="stock"):
    plan = plan or StepPlan(threads=1)
    return open_engine(name, bundle, plan, TrainConfig(learning_rate=1e-2), LossConfig())


def moved(engine):
    """Away from zero-shot, where no gradient and no score is zero."""
    random = np.random.default_rng(0)
    values = {
        name: (value + 0.1 * random.normal(size=value.shape)).astype(np.float32)
        for name, value in engine.parameters().items()
    }
    engine.set_parameters(values)
    return engine


def trained(bundle, folder, *, stop=None, plan=None, name="stock", train="prompts", dropout=0.2):
    """Train, condense and fine-tune with prompt dropout; `stop` orders to leave at that step."""
    engine, control = moved(opened(bundle, plan, name)), Control()
    records: list[dict] = []

    def record(values):
        records.append(values)
        if values["kind"] == "step" and values["step"] == stop:
            control.order("stop")

    condense = Condense(
        at=AT,
        share=0.4,
        only_prompts=train == "prompts",
        pictures=lambda: [problem(bundle, seed=0)],
        logits=ClassLogits(10.0),
        names=NAMES,
        chunk=4,
    )
    settings = LoopSettings(
        steps=STEPS, batch=6, learning_rate=1e-2, warmup_steps=2, restart_at=AT, average=0.5
    )
    loop = TrainLoop(
        engine,
        Batches(bundle),
        settings,
        Checkpoints(folder),
        record,
        control,
        [Codebook(NAMES), condense, PromptDropout(NAMES, dropout, seed=0)],
    )
    loop.resume()
    loop.run()
    return SimpleNamespace(engine=engine, loop=loop, records=records)


def arrays(engine):
    return {**engine.parameters(), **engine.buffers()}


def same(left, right, **tolerance):
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_allclose(right[name], value, err_msg=name, **tolerance)


def test_the_bundle_says_which_tensors_are_prompts(bundle):
    assert bundle.manifest.ladder.prompts == NAMES and NAMES.by_place == ()


def test_it_begins_at_zero_shot(bundle):
    engine, inputs = opened(bundle), problem(bundle)
    config = bundle.manifest.profile.ladder.prompts
    made = initial_prompts(bundle.manifest.ladder, config, engine.parameters(), [inputs], 0)
    engine.set_parameters(made)
    record = SimpleNamespace(engine=engine, step=0, record=lambda values: None)
    Codebook(NAMES).before(record)
    image = engine.encode_image(inputs.image_taps(0, 6), inputs.image_embedding, {})
    text = engine.encode_text(inputs.text_taps(0, 5), inputs.text_embedding)
    np.testing.assert_allclose(image, inputs.image_embedding, atol=1e-6)
    np.testing.assert_allclose(text, inputs.text_embedding, atol=1e-6)


def test_scores_are_the_change_of_the_loss(bundle):
    engine, inputs = moved(opened(bundle)), problem(bundle)
    found = scores(engine, [inputs], ClassLogits(10.0), names=NAMES, chunk=3)
    assert found.shape == (2, 4) and (found > 0).all()
    mask = np.ones((2, 4), np.float32)
    before = losses(engine, inputs, ClassLogits(10.0), 6)
    mask[1, 2] = 0
    engine.set_buffers({"prompts.mask": mask})
    change = np.abs(losses(engine, inputs, ClassLogits(10.0), 6) - before).mean()
    assert found[1, 2] == pytest.approx(change, rel=1e-3)
    again = scores(engine, [inputs], ClassLogits(10.0), names=NAMES, chunk=6)
    assert again[1, 2] == 0 and (again[0] > 0).all(), "what was dropped is not scored again"
    kept = keep(found, np.ones((2, 4)), 0.3)
    assert kept.sum() == 2 and found[kept > 0].min() >= found[kept == 0].max()
    assert keep(found, mask, 0.01).sum() == 1
    assert keep(np.ones((2, 4)), mask, 1.0)[1, 2] == 0


@pytest.mark.parametrize("stop", [3, AT, 10])
def test_resumed_over_condensation_equals_uninterrupted(bundle, tmp_path, stop):
    whole = trained(bundle, tmp_path / "whole")
    cut = trained(bundle, tmp_path / "cut", stop=stop)
    assert cut.loop.step == stop
    again = trained(bundle, tmp_path / "cut")
    for name, value in whole.engine.state().items():
        np.testing.assert_array_equal(again.engine.state()[name], value, err_msg=name)
    same(whole.loop.average, again.loop.average, rtol=0)


def test_dropout_changes_training_and_is_gone_after_it(bundle, tmp_path):
    dropped, whole = (trained(bundle, tmp_path / f"{p}", dropout=p).engine for p in (0.2, 0.0))
    assert np.abs(dropped.parameters()["image_up"] - whole.parameters()["image_up"]).max() > 1e-4
    assert (dropped.buffers()["prompts.dropout"] == 1).all()


@pytest.mark.parametrize("name", ["stock", "ort-training"])
def test_prototypes_learn_as_fast_as_random_prompts(bundle, name):
    """In proportion to their size: at rows' own size they would move 50 times less."""
    inputs, config = problem(bundle), bundle.manifest.profile.ladder.prompts
    made = initial_prompts(bundle.manifest.ladder, config, opened(bundle).parameters(), [inputs], 0)
    moved_by = []
    for start in ({}, made):
        engine = open_engine(
            name, bundle, StepPlan(threads=1), TrainConfig(weight_decay=0.0), LossConfig()
        )
        random = np.random.default_rng(0)
        out = {k: v for k, v in engine.parameters().items() if k.endswith("_up")}
        engine.set_parameters({k: random.normal(size=v.shape).astype("f") for k, v in out.items()})
        engine.set_parameters(start)
        first = engine.parameters()["prompts.tokens"]
        for step in range(10):
            engine.step(problem(bundle, seed=step % 4), 1e-3)
        change = engine.parameters()["prompts.tokens"] - first
        moved_by.append(np.linalg.norm(change) / np.linalg.norm(first))
        engine.close()
    assert moved_by[0] > 0.1 and 0.7 < moved_by[1] / moved_by[0] < 1.4, moved_by


def test_fine_tuning_changes_the_kept_prompts_alone(bundle, tmp_path):
    before = trained(bundle, tmp_path, stop=AT)  # left before condensing
    start = before.loop.average
    after = trained(bundle, tmp_path)
    values = arrays(after.engine)
    assert values["prompts.mask"].sum() == 3  # 0.4 of 8
    changed = {name for name, value in start.items() if not np.array_equal(value, values[name])}
    assert changed == {"prompts.tokens", "prompts.image_tokens"}
    record = next(r for r in after.records if r["kind"] == "condense")
    assert record["kept"] == 3 and record["of"] == 8 and record["step"] == AT
    whole = trained(bundle, tmp_path / "all", train="all")
    assert not np.array_equal(arrays(whole.engine)["image_up"], start["image_up"])
    rates = [r["learning_rate"] for r in after.records if r["kind"] == "step"]
    assert rates[0] == 1e-2 and rates[-1] < rates[0], "the rate begins once more"


def masked_bundle(folder: Path, target: Path) -> Bundle:
    """The bundle as it was exported before graphs took places: they read the mask alone."""
    shutil.copytree(folder, target)
    for path in [*target.glob("ladder/*.onnx"), target / "ladder/ort_training/training_model.onnx"]:
        model = onnx.load(str(path))
        inputs = [info for info in model.graph.input if info.name.startswith(NAMES.kept)]
        for info in inputs:
            model.graph.input.remove(info)
            whole = np.arange(4)  # prompts of a rung
            model.graph.initializer.append(onnx.numpy_helper.from_array(whole, info.name))
        onnx.save(model, str(path))
    return Bundle.reopen(target)


@pytest.mark.parametrize(
    ("plan", "name"),
    [
        (StepPlan(threads=1), "stock"),
        (StepPlan("recompute", threads=1), "stock"),
        (StepPlan("chunked", 3, threads=1), "stock"),
        (StepPlan("chunked", 3, hold_bytes=1 << 30, threads=1), "stock"),
        (StepPlan(threads=1), "ort-training"),
    ],
)
def test_fewer_prompts_are_as_masked_ones(bundle, folder, tmp_path, plan, name):
    """A bundle of before computes with all and silences; a new one with those that stay alone."""
    masked = moved(opened(masked_bundle(folder, tmp_path / "masked"), plan, name))
    fewer = moved(opened(bundle, plan, name))
    inputs = problem(bundle)
    fewer.gradients(inputs)  # sessions are open before the mask changes
    mask = np.zeros((2, 4), np.float32)
    mask[1, [0, 2]] = 1  # the first rung keeps none
    for engine in (masked, fewer):
        engine.set_buffers({NAMES.mask: mask})
    assert fewer.gradients(inputs) == pytest.approx(masked.gradients(inputs), rel=1e-6)
    for parameter, expected in masked.gradient_views.items():
        found, scale = fewer.gradient_views[parameter], max(1e-3, float(np.abs(expected).max()))
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale, err_msg=parameter)
    for rung in (0, 1):
        for tokens in NAMES.sets(fewer.gradient_views):
            dropped = fewer.gradient_views[tokens][rung][mask[rung] == 0]
            assert not dropped.any(), "what is left out has no gradient"


@pytest.mark.parametrize(
    ("plan", "name"), [(StepPlan("chunked", 3, threads=1), "stock"), (None, "ort-training")]
)
def test_other_ways_of_a_step_end_alike(bundle, tmp_path, plan, name):
    expected = trained(bundle, tmp_path / "fused")
    other = trained(bundle, tmp_path / "other", plan=plan, name=name)
    np.testing.assert_array_equal(
        other.engine.buffers()["prompts.mask"], expected.engine.buffers()["prompts.mask"]
    )
    same(arrays(expected.engine), arrays(other.engine), atol=2e-3)


def test_a_stored_adapter_computes_what_was_trained(bundle, tmp_path):
    engine, inputs = trained(bundle, tmp_path / "run").engine, problem(bundle)
    taps, text_taps = inputs.image_taps(0, 6), inputs.text_taps(0, 5)
    image = engine.encode_image(taps, inputs.image_embedding, {})
    text = engine.encode_text(text_taps, inputs.text_embedding)
    values = finalize(arrays(engine), NAMES)
    adapter = adapter_of(bundle, values, classes=CLASSES, class_names=CLASSES, templates=[])
    (tmp_path / "adapter").mkdir()
    stored = save_adapter(tmp_path / "adapter", adapter)
    assert to_json(stored) == {
        **{"rungs": 2, "prompts_per_rung": 4, "width": 32},
        **{"kept": 3, "bits": 1, "bytes": 2 * 3 * 32 // 8},
    }
    loaded = load_adapter(tmp_path / "adapter", bundle)
    same(values, loaded.parameters, rtol=0)
    encoder = Encoder(bundle, loaded.parameters, 1)
    found = encoder.encode_image(taps, inputs.image_embedding, {})
    np.testing.assert_allclose(found, image, atol=1e-5)
    np.testing.assert_allclose(
        encoder.encode_text(text_taps, inputs.text_embedding), text, atol=1e-5
    )
    engine.set_buffers({"prompts.mask": np.ones((2, 4), np.float32)})
    assert np.abs(engine.encode_image(taps, inputs.image_embedding, {}) - image).max() > 1e-4
    loaded.parameters = reactivate(
        loaded.parameters, loaded.record.prompt_tensors
    )  # and training may go on from it
    loaded.apply(engine)
    again = engine.encode_image(taps, inputs.image_embedding, {})
    np.testing.assert_allclose(again, image, atol=1e-3)


def test_condense_from_the_command_line(folder, picture_folder, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    first = tmp_path / "run"
    request = TrainRequest(
        bundle=str(folder),
        data=str(picture_folder),
        cache=str(tmp_path / "cache"),
        run=str(first),
        budget_bytes=8_000_000_000,
        engine="stock",
        overrides=["train.steps=4", "condense.epochs=1"],
    )
    result = run(request)
    assert result["prompts"]["kept"] == 2, "0.3 of 8, all in one go"
    assert result["steps"] == 4 + 2
    told = result["condensed"]
    assert (told["prompts_before"], told["prompts_after"]) == (8, 2)
    assert told["step_ms_before"] > 0 and told["step_ms_after"] > 0
    code = main(["condense", "--run", str(first), "--keep", "0.125", "--json"])
    result = json.loads(capfd.readouterr().out)
    assert code == 0, result
    assert result["run"] == f"{first}-condensed" and result["prompts"]["kept"] == 1
    assert result["prompts"]["bytes"] == 2 * 32 // 8
    told = result["condensed"]
    assert (told["prompts_before"], told["prompts_after"]) == (2, 1)
    assert told["step_ms_before"] > 0, "of the run it began from"
    assert result["accuracy"]["split"] == "test" and result["steps"] == 2
    last = Path(result["run"])
    sizes = [(f / "adapter.safetensors").stat().st_size for f in (first, last)]
    assert sizes[1] < sizes[0] and result["adapter_bytes"] == sizes[1]
    found = evaluate(last)
    assert found.accuracy == result["accuracy"]["tuned"]
    assert deploy(last, tmp_path / "model.onnx").difference < 1e-3


def test_the_bench_compares_all_with_those_that_stay(folder):
    asked = Namespace(batch=4, classes=3, keep=0.25, rounds=1, steps=1)
    whole, fewer = condense_bench.compare(folder, "fused", asked)
    assert (whole["prompts"], whole["kept"], fewer["kept"]) == (8, 8, 2)
    assert set(whole) == {*condense_bench.FIELDS, *condense_bench.MEASURED}
    assert 0 < fewer["prompt_bytes"] < whole["prompt_bytes"]
    assert fewer["adapter_bytes"] < whole["adapter_bytes"]


def test_what_the_device_may_change_of_the_prompts(bundle, bundle_folder):
    profile = prepare._profile(
        TrainRequest(overrides=["ladder.prompts.keep=0.9", "ladder.prompts.initialize=random"]),
        bundle,
    )
    assert profile.ladder.prompts.keep == 0.9
    with pytest.raises(ConfigError, match=r"ladder\.prompts of profile"):
        prepare._profile(TrainRequest(overrides=["ladder.prompts.bits=2"]), bundle)
    with pytest.raises(ConfigError, match=r"less than or equal to 1 @ ladder\.prompts\.keep"):
        prepare._profile(TrainRequest(overrides=["ladder.prompts.keep=1.5"]), bundle)
    changed = prepare._profile(TrainRequest(overrides=["ladder.prompts.dropout=0.5"]), bundle)
    assert changed.ladder.prompts.dropout == 0.5
    plain = Bundle.open(bundle_folder)
    with pytest.raises(ConfigError, match="no input for prompt dropout") as caught:
        prepare._profile(TrainRequest(overrides=["ladder.prompts.dropout=0.1"]), plain)
    assert caught.value.exit_code == 2 and "export it with" in caught.value.remedy
    with pytest.raises(ConfigError, match="no masks") as caught:
        prepare._profile(TrainRequest(overrides=["ladder.prompts.keep=0.3"]), plain)
    assert caught.value.exit_code == 2 and "ladder.prompts.keep=1" in caught.value.remedy
