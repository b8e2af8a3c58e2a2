"""Two hundred steps of the stock engine against torch with torch.optim.AdamW."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from edgeladder.core.config import LossConfig, TrainConfig
from edgeladder.core.manifest import LadderRecord
from edgeladder.host.compile import training_artifacts as ort_training
from edgeladder.host.compile.artifact import decays, write_ladder
from edgeladder.host.model.ladder import Objective
from edgeladder.runtime.engine import StepPlan
from edgeladder.runtime.engine.golden import ArrayInputs
from edgeladder.runtime.engine.stock import StockEngine
from edgeladder.runtime.engine.training_build import OrtTrainingEngine
from tests.host.compile.ladders import RECIPES, SCALE, build, case

STEPS = 200
BATCHES = 5
TRAIN = TrainConfig(learning_rate=2e-3, weight_decay=0.05, clip=1.0)


class Parts:
    """What an engine reads of a bundle, around a ladder without towers."""

    def __init__(self, folder: Path, ladder: LadderRecord):
        self.folder = folder
        model = SimpleNamespace(logit_scale=SCALE, logit_bias=0.0)
        self.manifest = SimpleNamespace(ladder=ladder, model=model)

    def path(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("parity")
    ladder = write_ladder(
        build(RECIPES[0]),
        SCALE,
        folder,
        train=TRAIN,
        with_ort_training=ort_training.available(),
    )
    return Parts(folder, ladder)


def batches() -> list[dict[str, np.ndarray]]:
    it = case(RECIPES[0])
    found = [it.data(8, 6, seed=seed) for seed in range(BATCHES)]
    for data in found:  # hard targets: the engine makes its own from labels
        data["targets"] = np.eye(6, dtype=np.float32)[data["targets"].argmax(1)]
    return found


@pytest.fixture(scope="module")
def reference() -> list[float]:
    """torch's loss curve, float32."""
    it = case(RECIPES[0])
    ladder = build(RECIPES[0])
    objective = Objective(ladder, SCALE)
    named = list(ladder.named_parameters())
    groups: list[dict[str, Any]] = [
        {
            "params": [p for n, p in named if decays(ladder, n, tuple(p.shape)) is decay],
            "weight_decay": TRAIN.weight_decay if decay else 0.0,
        }
        for decay in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=TRAIN.learning_rate, eps=TRAIN.epsilon)
    arguments = [
        [[t.float() for t in a] if isinstance(a, list) else a.float() for a in it.nested(data)]
        for data in batches()
    ]
    curve = []
    for given in itertools.islice(itertools.cycle(arguments), STEPS):
        optimizer.zero_grad()
        loss = objective(*given)[0]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ladder.parameters(), TRAIN.clip)
        optimizer.step()
        curve.append(float(loss.detach()))
    return curve


def follow(engine: StockEngine) -> list[float]:
    groups = {side: engine.groups[side] for side in ("image", "text")}
    inputs = itertools.cycle([ArrayInputs(data, groups) for data in batches()])
    return [engine.step(i, TRAIN.learning_rate).loss for i in itertools.islice(inputs, STEPS)]


@pytest.mark.parametrize(
    "plan",
    [
        StepPlan(threads=1),
        StepPlan("recompute", threads=1),
        StepPlan("chunked", 3, threads=1),
    ],
    ids=lambda plan: plan.mode,
)
def test_stock_follows_torch(parts, reference, plan):
    engine = StockEngine(parts, plan, TRAIN, LossConfig())
    curve = follow(engine)
    assert np.isfinite(curve).all() and np.isfinite(engine.state()["parameters"]).all()
    assert np.mean(curve[-BATCHES:]) < 0.5 * np.mean(curve[:BATCHES])  # it did learn
    np.testing.assert_allclose(curve, reference, rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(not ort_training.available(), reason="onnxruntime-training is not installed")
def test_ort_training_follows_torch(parts, reference):
    engine = OrtTrainingEngine(parts, StepPlan(threads=1), TRAIN, LossConfig())
    np.testing.assert_allclose(follow(engine), reference, rtol=1e-3, atol=1e-5)


def test_eight_bit_moments_stay_close(parts, reference):
    plan = StepPlan(moments="int8", threads=1)
    curve = follow(StockEngine(parts, plan, TRAIN, LossConfig()))
    last = slice(-BATCHES, None)
    # its cost on this problem: the loss at the end within a few per cent of where it began
    assert np.mean(curve[last]) < np.mean(reference[last]) + 0.05 * np.mean(reference[:BATCHES])


@pytest.mark.skipif(not ort_training.available(), reason="onnxruntime-training is not installed")
def test_its_runtime_can_read_every_artifact(parts):
    """Its own API opens the optimiser model too, which our engine does without."""
    for role in ("training_model", "eval_model", "optimizer_model"):
        model = onnx.load(str(parts.path(parts.manifest.ladder.ort_training[role])))
        assert model.ir_version <= 10, role
        onnxruntime.InferenceSession(model.SerializeToString())
