"""Optimiser graphs, driven by the device's `Optimizer`, against torch.optim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeladder.core.config import TrainConfig
from edgeladder.core.manifest import ParameterRecord
from edgeladder.host.compile import optimizer_graphs as graphs
from edgeladder.runtime.engine.optimizer_step import Layout, Optimizer
from edgeladder.runtime.engine.protocol import StepPlan
from edgeladder.runtime.session import open_session

RECORDS = [
    ParameterRecord(name="weight", shape=[40, 30], decay=True),
    ParameterRecord(name="bias", shape=[30], decay=False),
    ParameterRecord(name="gate", shape=[1], decay=False),
    ParameterRecord(name="second", shape=[7, 11], decay=True),
]
MAKERS = {
    "adamw": graphs.adamw,
    "adamw8": graphs.adamw8,
    "sgd": graphs.sgd,
    "norm": graphs.norm,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("optimizers")
    paths = {name: folder / f"{name}.onnx" for name in MAKERS}
    for name, path in paths.items():
        MAKERS[name]().save(path)
    return paths


class Pair:
    """The same parameters in our flat vector and in torch."""

    def __init__(self, files: dict[str, Path], train: TrainConfig, moments: str = "fp32"):
        self.layout = Layout(RECORDS)
        self.flat = np.zeros(self.layout.size, np.float32)
        self.gradients = np.zeros(self.layout.size, np.float32)
        self.views = self.layout.views(self.flat)
        self.slopes = self.layout.views(self.gradients)
        random = np.random.default_rng(0)
        for view in self.views.values():
            view[...] = random.normal(size=view.shape)
        self.tensors = {n: torch.tensor(v, dtype=torch.float64) for n, v in self.views.items()}
        decayed = [self.tensors[r.name] for r in RECORDS if r.decay]
        spared = [self.tensors[r.name] for r in RECORDS if not r.decay]
        groups = [
            {"params": decayed, "weight_decay": train.weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]
        self.torch: torch.optim.Optimizer
        if train.optimizer == "adamw":
            betas = (train.beta1, train.beta2)
            self.torch = torch.optim.AdamW(groups, betas=betas, eps=train.epsilon)
        else:
            self.torch = torch.optim.SGD(groups, lr=1.0, momentum=train.beta1)
        self.clip = train.clip
        plan = StepPlan(moments=moments, threads=1)
        self.ours = Optimizer(files, self.layout, self.flat, self.gradients, train, plan)

    def step(self, slopes: dict[str, np.ndarray], rate: float) -> tuple[float, float]:
        """One step of each; returns both gradient norms."""
        for name, slope in slopes.items():
            self.slopes[name][...] = slope
            self.tensors[name].grad = torch.tensor(slope, dtype=torch.float64)
        norm = torch.nn.utils.clip_grad_norm_(self.tensors.values(), self.clip)
        for group in self.torch.param_groups:
            group["lr"] = rate
        self.torch.step()
        return self.ours.update(rate), float(norm)

    def error(self) -> float:
        """The largest difference of a parameter."""
        return max(float(np.abs(self.views[n] - t.numpy()).max()) for n, t in self.tensors.items())


def slopes(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {r.name: (random.normal(size=r.shape) * scale).astype(np.float32) for r in RECORDS}


@pytest.mark.parametrize("clip", [1.0, 1e9])
def test_adamw_is_torchs(files, clip):
    pair = Pair(files, TrainConfig(clip=clip, weight_decay=0.1))
    for index in range(40):
        ours, theirs = pair.step(slopes(index), 1e-2 * (index + 1) / 40)
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert pair.error() < 1e-5


def test_sgd_is_torchs(files):
    # torch's decay enters the momentum, ours is decoupled: compared without
    train = TrainConfig(optimizer="sgd", beta1=0.8, weight_decay=0.0, clip=2.0)
    pair = Pair(files, train)
    for index in range(40):
        pair.step(slopes(index), 1e-2)
    assert pair.error() < 1e-5


def test_sgd_decay_is_decoupled(files):
    pair = Pair(files, TrainConfig(optimizer="sgd", weight_decay=0.5))
    before = {name: view.copy() for name, view in pair.views.items()}
    pair.step({r.name: np.zeros(r.shape, np.float32) for r in RECORDS}, 0.1)
    for record in RECORDS:
        factor = np.float32(1 - 0.1 * 0.5) if record.decay else 1.0
        np.testing.assert_allclose(pair.views[record.name], before[record.name] * factor, rtol=1e-6)


def test_clipping_leaves_small_gradients_alone(files):
    pair = Pair(files, TrainConfig(optimizer="sgd", beta1=0.0, weight_decay=0.0, clip=1e3))
    before, slope = pair.views["bias"].copy(), slopes(1)
    pair.step(slope, 0.5)
    np.testing.assert_allclose(pair.views["bias"], before - 0.5 * slope["bias"], rtol=1e-6)


def test_a_parameter_without_gradient_stays_finite(files):
    """Zero moments over zero moments: epsilon must have survived."""
    pair = Pair(files, TrainConfig(weight_decay=0.0))
    before = pair.views["gate"].copy()
    for index in range(3):
        pair.step({**slopes(index), "gate": np.zeros(1, np.float32)}, 1e-2)
    np.testing.assert_array_equal(pair.views["gate"], before)
    assert np.isfinite(pair.flat).all()


@pytest.mark.parametrize("moments", ["fp32", "int8"])
def test_gradients_that_are_not_finite_change_nothing(files, moments):
    pair = Pair(files, TrainConfig(), moments)
    pair.step(slopes(0), 1e-2)
    saved = {name: value.copy() for name, value in pair.ours.moments.items()}
    flat = pair.flat.copy()
    pair.slopes["weight"][0, 0] = np.nan
    assert np.isnan(pair.ours.update(1e-2))
    np.testing.assert_array_equal(pair.flat, flat)
    for name, value in saved.items():
        np.testing.assert_array_equal(pair.ours.moments[name], value)


def test_eight_bit_moments_end_close_to_fp32(files):
    """A noisy quadratic: both reach its bottom, in the same number of steps."""
    train = TrainConfig(weight_decay=0.0, clip=1e9)
    full, small = Pair(files, train), Pair(files, train, "int8")
    assert sum(m.nbytes for m in small.ours.moments.values()) < 0.27 * sum(
        m.nbytes for m in full.ours.moments.values()
    )
    target = slopes(100)
    distances = []
    for pair in (full, small):
        for index in range(300):
            noise = slopes(index, 0.1)
            slope = {n: pair.views[n] - target[n] + noise[n] for n in target}
            pair.step(slope, 0.1 * (1 - index / 300))
        distances.append(max(float(np.abs(pair.views[n] - target[n]).max()) for n in target))
    assert distances[0] < 0.15
    assert distances[1] < 0.15
    gap = np.concatenate([(full.views[n] - small.views[n]).ravel() for n in target])
    assert np.sqrt(np.mean(gap**2)) < 0.03


def test_eight_bit_step_is_adamws_formula(files):
    """From moments of any size, in plain numpy and AdamW's own terms; stored to the nearest."""
    train = TrainConfig(weight_decay=0.1, clip=1e9)
    pair = Pair(files, train, "int8")
    ours, flat = pair.ours, pair.flat
    decay = np.ones(pair.layout.size)
    decay[slice(*pair.layout.sections[0][:2])] -= 1e-2 * train.weight_decay
    random, rate = np.random.default_rng(5), 1e-2
    scale = (1 - train.beta1) / np.sqrt(1 - train.beta2)  # the stored root is of v times its square
    for name, moment in ours.moments.items():
        low, high = {"moment1": (-127, 128), "moment2": (0, 256)}.get(name, (1, 9))
        moment[...] = random.integers(low, high, moment.shape) * (1e-3 if high == 9 else 1)
    ours.gradients[...] = random.normal(size=ours.gradients.shape) * 0.1
    ours.step_count = 6
    stored = {name: moment.astype(np.float64) for name, moment in ours.moments.items()}
    scales = {name: np.repeat(stored[name], 256) for name in ("scale1", "scale2")}
    slope, before = ours.gradients.astype(np.float64), flat.astype(np.float64)
    m = train.beta1 * stored["moment1"] * scales["scale1"] + (1 - train.beta1) * slope
    v = train.beta2 * (stored["moment2"] * scales["scale2"] / scale) ** 2
    v += (1 - train.beta2) * slope**2
    ours.update(rate)
    step = m / (1 - train.beta1**7) / (np.sqrt(v / (1 - train.beta2**7)) + train.epsilon)
    np.testing.assert_allclose(flat, before * decay - rate * step, atol=2e-6)
    moments = ours.moments
    read = moments["moment1"] * np.repeat(moments["scale1"], 256)
    assert (np.abs(read - m) <= 0.501 * np.repeat(moments["scale1"], 256)).all()
    over = moments["moment2"] * np.repeat(moments["scale2"], 256) - np.sqrt(v) * scale
    levels = np.repeat(moments["scale2"], 256)
    assert (over >= -1e-3 * levels).all() and (over <= 1.001 * levels).all(), "rounded up"


def test_eight_bit_roots_never_round_down_to_zero(files):
    pair = Pair(files, TrainConfig(weight_decay=0.0, clip=1e9), "int8")
    before = pair.flat.copy()
    slope = {r.name: np.full(r.shape, 1e-6, np.float32) for r in RECORDS}
    slope["weight"][0, 0] = 1.0  # sets its block's scale
    for _ in range(5):
        pair.step(slope, 1e-2)
    assert np.abs(pair.flat - before).max() < 0.2  # no step blown up by a zero denominator


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_in_place_equals_fresh_outputs(files, kind):
    train = TrainConfig(optimizer=kind, clip=1e9, weight_decay=0.1)
    pair = Pair(files, train)
    session = open_session(files[kind], 1, as_written=True)
    start, stop, _ = pair.layout.sections[0]
    fresh = {"parameter": pair.flat[start:stop].copy()}
    fresh.update({n: m[start:stop].copy() for n, m in pair.ours.moments.items()})
    for index in range(5):
        pair.step(slopes(index), 1e-2)
        feed = {**fresh, "gradient": pair.gradients[start:stop], **pair.ours.scalars}
        feed["keep"] = pair.ours.keep[True]
        wanted = {i.name: feed[i.name] for i in session.get_inputs()}
        names = [o.name for o in session.get_outputs()]
        results = session.run(names, wanted)
        fresh = {n.removesuffix("_next"): v for n, v in zip(names, results, strict=True)}
    np.testing.assert_array_equal(fresh["parameter"], pair.flat[start:stop])
    for name, moment in pair.ours.moments.items():
        np.testing.assert_array_equal(fresh[name], moment[start:stop])
