#!/usr/bin/env python
"""EdgeLadder beside what a person would take instead: seconds, memory, megabytes, in turns.

    python -m tools.bench.peers.cost --model ViT-B/16 --bundle b16 --int8-bundle b16-int8 \
        --python DEVICE/bin/python --training-python TRAINING/bin/python \
        --onnx clip.onnx --onnx-python PROBE/bin/python --state cost.jsonl
    python -m tools.bench.peers.cost --state cost.jsonl --show

Host only; the others are run by their own interpreters. Made-up pictures and, unless --weights says
otherwise, untrained weights: nothing is said of accuracies. Every row is one command on an empty
cache, one at a time, forwards and backwards in turns, so that the machine's moods are shared out:

- edgeladder-float32, -int8 (--int8-bundle), -int8-fast (profile fast: the closed-form head alone),
  -streamed (within --streamed-budget), and with onnxruntime-training's engine (--training-python;
  a bundle exported with --engine all);
- linear-probe, clip-adapter, coop, vpt-deep, maple: torch and open_clip (`run.py`). The last three
  stop after --steps steps, and what the recipe's others would take is added; of the first three
  the picture features are computed once, which is faster than their papers have it;
- onnx-sklearn: an ONNX tower and scikit-learn's logistic regression (`onnx_probe.py`).

Seconds and CPU seconds are from nothing to the tuned model, features included; the peak is of the
process tree, resident pages of all processes summed. One JSON line a row in --state; rows that are
there are not run again, failed ones are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from edgeladder.core.errors import DataError  # noqa: E402
from tools.bench.fabricated_data import write_data  # noqa: E402
from tools.bench.peers.measured import Measured, environment, run_measured, told  # noqa: E402
from tools.bench.result_rows import add_lines, load_lines  # noqa: E402

MB = 1_000_000
_COMMAND = "from edgeladder.cli.app import run; run()"
_TORCH = ("linear-probe", "clip-adapter", "coop", "vpt-deep", "maple")
_ALL_STEPS = 1_000_000  # more than any recipe has: trained to the end, and not tested
_PROMPTS = ("coop", "vpt-deep", "maple")
_INT8 = ("edgeladder-int8", "edgeladder-int8-fast")
_OURS = ("edgeladder-float32", *_INT8, "edgeladder-streamed", "onnxruntime-training")
METHODS = (*_OURS, *_TORCH, "onnx-sklearn")
Row = dict[str, Any]


def turns(rounds: int, methods: list[str]) -> Iterator[tuple[int, str]]:
    """Every round's methods, every other round from behind."""
    for number in range(rounds):
        for method in methods if number % 2 == 0 else methods[::-1]:
            yield number, method


def ours(given: argparse.Namespace, method: str, folder: Path) -> Row:
    """`edgeladder train` on an empty cache, and what a further picture costs `predict`."""
    bundle = given.int8_bundle if method in _INT8 else given.bundle
    python = given.training_python if method == "onnxruntime-training" else given.python
    engine = "ort-training" if method == "onnxruntime-training" else "stock"
    streamed = method == "edgeladder-streamed"
    budget = ["--budget", given.streamed_budget if streamed else given.budget]
    line = [str(python), "-c", _COMMAND]
    train = ["train", "--json", "--bundle", str(bundle), "--data", str(given.data)]
    train += ["--cache", str(folder / "cache"), "--run", str(folder / "run"), "--no-pictures"]
    if method.endswith("-fast"):  # the closed-form head alone: as much as a probe is
        train += ["--profile", "fast"]
    done = run_measured([*line, *train, "--engine", engine, *budget], given.environment)
    result = told(done)
    pictures = _unpacked(given, folder)
    within = ["--budget", given.streamed_predict_budget] if streamed else budget
    predict = [*line, "predict", "--json", "--run", str(folder / "run"), *within]
    _timed([*predict, pictures[0]], given)  # what the first of them alone has to do
    few, many = (_timed([*predict, *part], given) for part in (pictures[:1], pictures))
    return {
        "seconds": round(done.seconds, 2),
        "cpu_seconds": round(done.cpu_seconds, 2),
        "peak_bytes": done.peak_rss,
        "told_peak_bytes": max(
            phase["measured_peak_bytes"] for phase in result["memory"]["phases"].values()
        ),
        "train_images_per_second": result["throughput"]["train_images_per_second"],
        # of what starting costs both alike; a machine so busy that one took longer says nothing
        "predict_images_per_second": round((len(pictures) - 1) / (many - few), 3)
        if many > few
        else None,
        "installed_mb": installed(str(python), "edgeladder"),
    }


def _unpacked(given: argparse.Namespace, folder: Path) -> list[str]:
    """As many of the test pictures as predictions are timed on, as files; some of them twice."""
    with zipfile.ZipFile(given.data) as archive:
        names = [name for name in archive.namelist() if name.startswith("test/")]
        found = []
        for number in range(max(2, given.predict)):
            path = folder / f"{number}.jpg"
            path.write_bytes(archive.read(names[number % len(names)]))
            found.append(str(path))
    return found


def _timed(command: list[str], given: argparse.Namespace) -> float:
    done = run_measured(command, given.environment)
    told(done)
    return done.seconds


def torch_peer(given: argparse.Namespace, method: str, folder: Path) -> Row:
    """A method of `run.py` in a process of its own."""
    command = [sys.executable, "-m", "tools.bench.peers.run", "--method", method]
    command += ["--model", given.model, "--pretrained", given.weights, "--data", str(given.data)]
    most = given.steps if method in _PROMPTS else _ALL_STEPS
    command += ["--shots", str(given.shots), "--images-once", "--steps", str(most)]
    command += ["--predict", str(given.predict), "--threads", str(given.threads)]
    done = run_measured(command, given.environment)
    result = told(done)
    rest = result["all_steps"] - result["steps"]
    batch = min(given.shots * given.classes, 4 if method == "maple" else 32)
    row = _peer_row(done, result)
    row["seconds"] += round(rest * result["seconds_per_step"], 2)
    row["cpu_seconds"] += round(rest * result["cpu_seconds_per_step"], 2)
    return row | {
        "extrapolated_steps": rest,
        "train_images_per_second": round(batch / max(result["seconds_per_step"], 1e-4), 3),
        "installed_mb": installed(sys.executable, "open_clip_torch", "torch"),
    }


def onnx_peer(given: argparse.Namespace, method: str, folder: Path) -> Row:
    """`onnx_probe.py` in an environment without torch."""
    command = [str(given.onnx_python), str(ROOT / "tools/bench/peers/onnx_probe.py")]
    command += ["--onnx", str(given.onnx), "--data", str(given.data)]
    command += ["--predict", str(given.predict), "--threads", str(given.threads)]
    done = run_measured(command, given.environment)
    packages = ("onnxruntime", "scikit-learn", "pillow")
    row = _peer_row(done, told(done))
    return row | {"installed_mb": installed(str(given.onnx_python), *packages)}


def _peer_row(done: Measured, result: Row) -> Row:
    """To the tuned model: what loading took, beside what the method itself counted."""
    return {
        "seconds": round(result["seconds"] + result["load_seconds"], 2),
        "cpu_seconds": round(result["cpu_seconds"] + result["load_cpu_seconds"], 2),
        "peak_bytes": max(done.peak_rss, result["peak_rss_bytes"]),
        "predict_images_per_second": result["predict_images_per_second"],
    }


@cache
def installed(python: str, *names: str) -> float:
    """Megabytes of some distributions and all that they need, in an interpreter's environment."""
    script = str(ROOT / "tools" / "bench" / "install_size.py")
    done = subprocess.run([python, script, *names], capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1].split("|")[2])


def medians(rows: list[Row], name: str) -> dict[str, float]:
    """Of every method that has the number."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.get(name) is not None:
            found.setdefault(row["method"], []).append(float(row[name]))
    return {method: statistics.median(values) for method, values in found.items()}


_COLUMNS = (
    ("seconds", "seconds", 1.0),
    ("CPU s", "cpu_seconds", 1.0),
    ("peak MB", "peak_bytes", 1 / MB),
    ("training pictures/s", "train_images_per_second", 1.0),
    ("predicted pictures/s", "predict_images_per_second", 1.0),
    ("installed MB", "installed_mb", 1.0),
    ("steps added", "extrapolated_steps", 1.0),
)


def table(rows: list[Row]) -> str:
    """Markdown: medians, then the ratios that are asked for."""
    good = [row for row in rows if "error" not in row]
    heads = ["method", "runs", *(head for head, _, _ in _COLUMNS)]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    columns = [(medians(good, name), scale) for _, name, scale in _COLUMNS]
    for method in (m for m in METHODS if any(row["method"] == m for row in good)):
        cells = [method, str(sum(row["method"] == method for row in good))]
        cells += [f"{v[method] * s:,.1f}" if method in v else "-" for v, s in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *ratios(good)])


def ratios(rows: list[Row]) -> list[str]:
    """What issue and readers ask: memory, time and training speed against the nearest peer."""
    seconds, peaks = medians(rows, "seconds"), medians(rows, "peak_bytes")
    speed = medians(rows, "train_images_per_second")
    prompts = [peaks[method] for method in _PROMPTS if method in peaks]
    found = []
    for mine in (method for method in _OURS if method in peaks):
        if prompts:
            found.append(
                f"- memory of the least prompt tuner / {mine}: {min(prompts) / peaks[mine]:.1f}"
            )
        if "onnx-sklearn" in peaks:
            faster = seconds["onnx-sklearn"] / seconds[mine]
            found.append(f"- onnx-sklearn / {mine}: {faster:.2f} of the time, "
                         f"{peaks['onnx-sklearn'] / peaks[mine]:.2f} of the memory")  # fmt: skip
        if "coop" in speed and speed.get(mine):  # a head alone trains nothing
            found.append(
                f"- training pictures a second, {mine} / coop: {speed[mine] / speed['coop']:.0f}"
            )
    return found


def runner(method: str) -> Callable[[argparse.Namespace, str, Path], Row]:
    """What measures a method."""
    if method in _OURS:
        return ours
    return torch_peer if method in _TORCH else onnx_peer


def possible(given: argparse.Namespace) -> list[str]:
    """The methods for which everything needed was named."""
    lacking = {
        **dict.fromkeys(_INT8, given.int8_bundle),
        "onnxruntime-training": given.training_python,
        "onnx-sklearn": given.onnx_python,
    }
    return [m for m in given.methods if m not in lacking or lacking[m] is not None]


def command_line() -> argparse.Namespace:
    """This command's line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--state", type=Path, required=True, help="one JSON line a row")
    parser.add_argument("--show", action="store_true", help="show --state, run nothing")
    parser.add_argument("--model", default="ViT-B/16", help="open_clip's name, nano or nano-vit")
    parser.add_argument("--weights", default="none", help="of the peers: a file, or none")
    parser.add_argument("--bundle", type=Path, help="of the same model, float32")
    parser.add_argument("--int8-bundle", type=Path)
    parser.add_argument("--python", default=sys.executable, help="of `edgeladder`")
    parser.add_argument("--training-python", help="the same with onnxruntime-training")
    parser.add_argument("--onnx", type=Path, help="of onnx_image.py; made where it is not there")
    parser.add_argument("--onnx-python", help="with onnxruntime, scikit-learn and Pillow")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="of a prompt tuner")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--predict", type=int, default=32, help="pictures")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", default="4GB")
    parser.add_argument("--streamed-budget", default="192MB")
    parser.add_argument("--streamed-predict-budget", default="256MB", help="of its predictions")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    given = parser.parse_args()
    if not given.show and given.bundle is None:
        parser.error("--bundle is needed, or --show")
    return given


def measure_all(given: argparse.Namespace, work: Path, rows: list[Row]) -> None:
    """Every row that is not in the state, into it."""
    count = given.classes * given.shots
    given.data = write_data(work / "data.zip", count, given.classes, given.classes, drawn=True)
    given.environment = environment() | {"OMP_NUM_THREADS": str(given.threads)}
    methods = possible(given)
    if "onnx-sklearn" in methods and not (given.onnx and given.onnx.is_file()):
        given.onnx = given.onnx or work / "clip.onnx"
        export = ["--model", given.model, "--pretrained", given.weights, "--out", str(given.onnx)]
        command = [sys.executable, "-m", "tools.bench.peers.onnx_image", *export]
        subprocess.run(command, env=given.environment, check=True, stdout=subprocess.DEVNULL)
    done = {(row["round"], row["method"]) for row in rows if "error" not in row}
    for number, method in turns(given.rounds, methods):
        if (number, method) in done:
            continue
        row: Row = {"round": number, "method": method, "model": given.model}
        row |= {"classes": given.classes, "shots": given.shots, "threads": given.threads}
        with tempfile.TemporaryDirectory(dir=work) as folder:
            try:
                row |= runner(method)(given, method, Path(folder))
            except (DataError, subprocess.CalledProcessError, LookupError) as error:
                row["error"] = str(error)
        rows.append(row)
        add_lines(given.state, [row])
        print(json.dumps(row), file=sys.stderr, flush=True)


def main() -> int:
    """Run what is missing and print the table."""
    given = command_line()
    rows: list[Row] = load_lines(given.state)
    if not given.show:
        with tempfile.TemporaryDirectory(prefix="cost-") as work:
            measure_all(given, Path(work), rows)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
