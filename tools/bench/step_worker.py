"""One contender of tools/bench/step.py: runs steps when its standard input says so."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.config import LossConfig, TrainConfig

Mode = Literal["fused", "recompute", "chunked"]
SCALE, RATE, DIM = 100.0, 1e-3, 512
WARM = 3
TRAIN = SimpleNamespace(
    optimizer="adamw",
    learning_rate=RATE,
    weight_decay=0.01,
    beta1=0.9,
    beta2=0.999,
    epsilon=1e-8,
    clip=1.0,
)


def plain(value: Any) -> Any:
    """JSON as attributes; what is keyed by free names stays a dict."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return SimpleNamespace(**{key: plain(item) for key, item in value.items()})
    return value


class Inputs:
    """The same random batch for every contender."""

    def __init__(self, batch: int, classes: int, groups: list[dict[str, Any]]):
        draw = np.random.default_rng(0)

        def normal(*shape: int) -> np.ndarray:
            return draw.standard_normal(shape, np.float32)

        def unit(count: int) -> np.ndarray:
            rows = normal(count, DIM)
            unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            return unit

        self.labels = np.arange(batch) % classes
        self.image_embedding, self.text_embedding = unit(batch), unit(classes)
        self.image_extra: dict[str, np.ndarray] = {}
        self.taps: dict[str, list[np.ndarray]] = {"image": [], "text": []}
        for group in groups:
            count = batch if group["side"] == "image" else classes
            taps = normal(len(group["taps"]), group["tokens"], count, group["width"])
            self.taps[group["side"]].append(taps)
        self.bytes = sum(t.nbytes for taps in self.taps.values() for t in taps)
        self.bytes += self.image_embedding.nbytes + self.text_embedding.nbytes

    def image_taps(self, start: int, stop: int) -> list[np.ndarray]:
        """Taps of pictures, (L, T, n, D) per group."""
        return [np.ascontiguousarray(t[:, :, start:stop]) for t in self.taps["image"]]

    def text_taps(self, start: int, stop: int) -> list[np.ndarray]:
        """Taps of classes, (L, T, n, D) per group."""
        return [np.ascontiguousarray(t[:, :, start:stop]) for t in self.taps["text"]]

    def targets(self) -> np.ndarray:
        """One-hot labels (B, C)."""
        return np.eye(len(self.text_embedding), dtype=np.float32)[self.labels]


# what the plan chooses for the smallest budgets that hold all activations, by its moments
LEAN: dict[str, Literal["fp32", "int8"]] = {"lean": "fp32", "lean8": "int8"}
Step = Callable[[], "float | None"]  # seconds without the optimiser, where they can be told apart


def stock(name: str, folder: Path, inputs: Inputs, record: dict[str, Any], threads: int) -> Step:
    """Our engine."""
    from edgeladder.budget.windows import class_chunk
    from edgeladder.runtime.engine.protocol import StepPlan
    from edgeladder.runtime.engine.stock import StockEngine

    ladder = plain(record)
    ladder.graphs = {key: plain(value) for key, value in record["graphs"].items()}
    bundle = SimpleNamespace(
        folder=folder,
        path=lambda name: folder / name,
        manifest=SimpleNamespace(
            ladder=ladder, model=SimpleNamespace(logit_scale=SCALE, logit_bias=0.0)
        ),
    )
    mode, _, size = name.removeprefix("stock-").partition("-")
    if mode in LEAN:
        plan = StepPlan("recompute", threads=threads, arena=False, moments=LEAN[mode])
    elif not size:
        plan = StepPlan(cast("Mode", mode), threads=threads)
    else:
        chunk = int(size)
        held = 2**40 if mode == "held" else 0
        plan = StepPlan(
            "chunked",
            chunk,
            class_chunk(ladder, chunk),
            threads=threads,
            hold_bytes=held,
            arena=False,  # as the plan has it where memory is short
        )
    loss = SimpleNamespace(anchor=0.0, smoothing=0.0)
    engine = StockEngine(
        cast("Bundle", bundle), plan, cast("TrainConfig", TRAIN), cast("LossConfig", loss)
    )

    def step() -> float:
        start = time.perf_counter()
        engine.gradients(inputs)
        seconds = time.perf_counter() - start
        engine.optimizer.update(RATE)
        return seconds

    return step


def ort_training(folder: Path, inputs: Inputs, record: dict[str, Any], threads: int) -> Step:
    """onnxruntime-training's own Module and Optimizer, kept from importing torch."""
    import onnxruntime

    package = ModuleType("onnxruntime.training")
    package.__path__ = [str(Path(onnxruntime.__file__).parent / "training")]
    sys.modules["onnxruntime.training"] = package
    from onnxruntime.training import api

    files = {role: str(folder / file) for role, file in record["ort_training"].items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    state = api.CheckpointState.load_checkpoint(files["checkpoint"])
    module = api.Module(
        files["training_model"], state, files["eval_model"], session_options=options
    )
    optimizer = api.Optimizer(files["optimizer_model"], module)
    optimizer.set_learning_rate(RATE)
    taps = {g["input"]: None for g in record["groups"]}
    values = dict(zip(taps, [*inputs.taps["image"], *inputs.taps["text"]], strict=True))
    values["image_embedding"] = inputs.image_embedding
    values["text_embedding"] = inputs.text_embedding
    module.train()

    def step() -> float:
        start = time.perf_counter()
        values["targets"] = inputs.targets()
        module(*(values[name] for name in module.input_names()))
        seconds = time.perf_counter() - start
        optimizer.step()
        module.lazy_reset_grad()
        return seconds

    return step


def torch_step(name: str, inputs: Inputs, threads: int) -> Step:
    """torch with its own AdamW, eager or compiled."""
    import torch

    from edgeladder.host.model.ladder import Objective
    from tools.bench import step as bench

    torch.set_num_threads(threads)
    objective: Any = Objective(bench.reference_ladder(), SCALE)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=RATE, weight_decay=0.01)
    parameters = list(objective.parameters())
    if name == "torch-compile":
        objective = torch.compile(objective)
    arguments = (
        [torch.from_numpy(t) for t in inputs.taps["image"]],
        torch.from_numpy(inputs.image_embedding),
        [torch.from_numpy(t) for t in inputs.taps["text"]],
        torch.from_numpy(inputs.text_embedding),
    )

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        objective(*arguments, torch.from_numpy(inputs.targets()))[0].backward()
        seconds = time.perf_counter() - start
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return seconds

    return step


def peak_mb() -> float:
    """Highest resident size of this process image (ru_maxrss would count the parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    raise RuntimeError("no VmHWM in /proc/self/status")


def main() -> None:
    """Answer every `run N` on stdin with the seconds of N steps, `end` with the peak."""
    name, folder, size, threads = sys.argv[1:5]
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries print; our lines are the protocol
    batch, classes = (int(part) for part in size.split("x"))
    record = json.loads((Path(folder) / "parts.json").read_text())
    inputs = Inputs(batch, classes, record["groups"])
    step: Step
    if name.startswith("stock-"):
        step = stock(name, Path(folder), inputs, record, int(threads))
    elif name == "ort-training":
        step = ort_training(Path(folder), inputs, record, int(threads))
    else:
        step = torch_step(name, inputs, int(threads))
    start = time.perf_counter()
    for _ in range(WARM):
        step()
    say: dict[str, Any] = {"ready": time.perf_counter() - start}
    while True:
        print(json.dumps(say), file=out, flush=True)
        words = sys.stdin.readline().split()
        if not words or words[0] == "end":
            say = {"peak_mb": peak_mb(), "input_mb": inputs.bytes / 1e6}
            print(json.dumps(say), file=out, flush=True)
            return
        seconds, gradients = [], []
        for _ in range(int(words[1])):
            start = time.perf_counter()
            gradients.append(step())
            seconds.append(time.perf_counter() - start)
        say = {"seconds": seconds, "gradient_seconds": gradients}


if __name__ == "__main__":
    main()
