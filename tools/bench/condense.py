#!/usr/bin/env python
"""What condensing saves: a step's time, the process's peak, the adapter's size.

    tools/bench/variants.py --group counts --out counts                                    # host
    python -m tools.bench.condense --bundles counts --keep 0.3 --out condense.csv

Each way is a process of its own, on one thread: the engine with all prompts, and with a share of
them chosen at random over all rungs, as many as condensing keeps. They take turns, `--rounds` times
`--steps` steps each on the same random batch. Times are medians: of the clock, and of the
processor, which other processes on the machine disturb less. The peak is the process's highest
resident size. Beside them the adapter as a run writes it, without a head. One row a bundle and way;
what the file has already stays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from edgeladder.core.bundle import Bundle  # noqa: E402
from edgeladder.core.config import LossConfig, TrainConfig  # noqa: E402
from edgeladder.jobs.condensation import keep  # noqa: E402
from edgeladder.runtime.adapter import adapter_of, save_adapter  # noqa: E402
from edgeladder.runtime.engine.golden import ArrayInputs, groups_of, perturbed  # noqa: E402
from edgeladder.runtime.engine.protocol import StepPlan  # noqa: E402
from edgeladder.runtime.engine.stock import StockEngine  # noqa: E402
from edgeladder.runtime.prompt_storage import finalize  # noqa: E402
from tools.bench import result_rows  # noqa: E402

FIELDS = ["bundle", "mode", "batch", "classes", "prompts", "kept"]
MEASURED = ["wall_ms", "cpu_ms", "peak_mb", "adapter_bytes", "prompt_bytes"]
_RATE = 1e-3
_WARM = 3  # steps before any is counted
MODES = {
    "fused": StepPlan("fused", threads=1),
    "chunked": StepPlan("chunked", 8, threads=1, arena=False),
}


def inputs_of(bundle: Bundle, batch: int, classes: int) -> ArrayInputs:
    """A random batch, the same for every way."""
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for group in bundle.manifest.ladder.groups:
        count = batch if group.side == "image" else classes
        shape = len(group.taps), group.tokens, count, group.width
        arrays[group.input] = random.standard_normal(shape, np.float32)
    width = bundle.manifest.model.embedding_dim
    for side, count in (("image", batch), ("text", classes)):
        rows = random.standard_normal((count, width), np.float32)
        arrays[f"{side}_embedding"] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    arrays["targets"] = np.eye(classes, dtype=np.float32)[np.arange(batch) % classes]
    for parameter in bundle.manifest.ladder.parameters:
        if parameter.name == "project":
            rows = random.standard_normal((batch, parameter.shape[0]), np.float32)
            arrays["image_embedding_pre"] = 0.1 * rows
    return ArrayInputs(arrays, groups_of(bundle))


def stored_bytes(bundle: Bundle, engine: StockEngine) -> tuple[int, int]:
    """Of the whole adapter, and of its prompts."""
    names = bundle.manifest.ladder.prompts
    values = finalize({**engine.parameters(), **engine.buffers()}, names)
    adapter = adapter_of(bundle, values, classes=[], class_names=[], templates=[])
    with tempfile.TemporaryDirectory() as folder:
        packed = save_adapter(Path(folder), adapter)
        whole = sum(values[name].nbytes for name in names.sets(values))
        size = (Path(folder) / "adapter.safetensors").stat().st_size
    return size, packed.bytes if packed else whole


def peak_mb() -> float:
    """Highest resident size of this process."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def work(folder: str, mode: str, size: str, share: float) -> None:
    """A way: answers each line on stdin with the seconds of that many steps, then says the rest."""
    bundle = Bundle.reopen(folder)
    batch, classes = (int(part) for part in size.split("x"))
    engine = StockEngine(bundle, MODES[mode], TrainConfig(learning_rate=_RATE), LossConfig())
    engine.set_parameters(perturbed(engine.parameters()))
    names = bundle.manifest.ladder.prompts
    mask = engine.buffers().get(names.mask)
    if mask is None:  # a ladder that cannot be condensed, to compare with
        mask = np.ones(engine.parameters()[names.text].shape[:2], np.float32)
    elif share < 1:
        scores = np.random.default_rng(1).random(mask.shape)
        mask = keep(scores, mask, share)
        engine.set_buffers({names.mask: mask})
    inputs = inputs_of(bundle, batch, classes)
    for _ in range(_WARM):
        engine.step(inputs, _RATE)
    say: dict[str, Any] = {"prompts": int(mask.size), "kept": int(mask.sum())}
    while True:
        print(json.dumps(say), flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            break
        wall, cpu = [], []
        for _ in range(int(line)):
            started, used = time.perf_counter(), time.process_time()
            engine.step(inputs, _RATE)
            wall.append(time.perf_counter() - started)
            cpu.append(time.process_time() - used)
        say = {"wall": wall, "cpu": cpu}
    peak = peak_mb()
    adapter, prompts = stored_bytes(bundle, engine)
    print(json.dumps({"peak_mb": peak, "adapter_bytes": adapter, "prompt_bytes": prompts}))


class Way:
    """A process that takes steps when it is asked to, and what it said of itself first."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process
        self.told = self._answer()
        self.times: dict[str, list[float]] = {"wall": [], "cpu": []}

    def ask(self, line: str) -> dict[str, Any]:
        """Its answer to a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        told: dict[str, Any] = json.loads(self._process.stdout.readline())
        return told


def compare(folder: Path, mode: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row with all prompts and one with the kept share, in turns."""
    command = [sys.executable, __file__, "--work", str(folder), mode]
    command.append(f"{arguments.batch}x{arguments.classes}")
    given: dict[str, Any] = {"bundle": f"{folder.parent.name}/{folder.name}", "mode": mode}
    given |= {"batch": arguments.batch, "classes": arguments.classes}
    pipe = subprocess.PIPE
    with contextlib.ExitStack() as stack:
        started = [
            subprocess.Popen([*command, str(share)], stdin=pipe, stdout=pipe, text=True)
            for share in (1.0, arguments.keep)
        ]
        ways = [Way(stack.enter_context(process)) for process in started]
        for _ in range(arguments.rounds):
            for way in ways:
                for key, seconds in way.ask(str(arguments.steps)).items():
                    way.times[key] += seconds
        medians = [
            {f"{key}_ms": round(1000 * statistics.median(v), 3) for key, v in way.times.items()}
            for way in ways
        ]
        return [
            {**given, **way.told, **times, **way.ask("")}
            for way, times in zip(ways, medians, strict=True)
        ]


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bundles", type=Path, action="append", required=True, help="folder of")
    parser.add_argument("--keep", type=float, default=0.3)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--out", type=Path, default=Path("condense.csv"))
    return parser.parse_args()


def main() -> None:
    """Measure what is not done."""
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], sys.argv[3], sys.argv[4], float(sys.argv[5]))
        return
    arguments = parse_arguments()
    rows = result_rows.load(arguments.out)
    done = {(row["bundle"], row["mode"]) for row in rows}
    folders = [p.parent for whole in arguments.bundles for p in whole.glob("*/manifest.json")]
    for folder in sorted(folders):
        for mode in arguments.modes:
            if (f"{folder.parent.name}/{folder.name}", mode) in done:
                continue
            rows += compare(folder, mode, arguments)
            result_rows.save(arguments.out, rows, [*FIELDS, *MEASURED])
            print(rows[-2:], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
