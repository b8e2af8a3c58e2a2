"""What a model costs: bundle, export, time of a picture, smallest budget. One row a model.

    python -m tools.bench.model_row --model ViT-B-16 --python .envs/device/bin/python \
        --csv tools/bench/results/models.csv

Untrained weights (`--pretrained none`), profile `default`, float32, stock engine: time and memory
do not depend on the weights' values. Times are the processor's, so that other work on the machine
counts little. Precompute runs within the smallest budget (segment by segment) and within `--ample`
(the whole tower, where it fits): once for a picture of each class, so that the classes are cached,
then for all pictures, then once more with all of them cached, which costs all but the pictures.
Each is a command of its own; plan and precompute run in a device's environment, because
onnxruntime-training loads torch where there is one.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from edgeladder.core.shipped import DEMO_PICTURES

_SUPERVISOR = 30_000_000  # bytes: `precompute` by itself keeps the larger one, `train` does not
HEADER = (
    "model", "bundle_mb", "export_cpu_seconds", "smallest_budget_mb",
    "smallest_cpu_seconds_per_picture", "ample_budget_mb", "ample_cpu_seconds_per_picture",
    "pictures",
)  # fmt: skip


def answer(python: Path, *words: object, code: int = 0) -> dict[str, Any]:
    """A command's JSON, in the environment of this interpreter.

    Args:
        python: of the environment.
        words: of the command.
        code: an exit code beside 0 that is an answer, too.

    Raises:
        RuntimeError: it failed.
    """
    line = [str(python), "-m", "edgeladder", *map(str, words), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode not in (0, code):
        raise RuntimeError(f"{' '.join(line)}: {done.stdout}{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def some_pictures(folder: Path, each: int) -> Path:
    """So many training pictures of each class of the sample that ships."""
    with zipfile.ZipFile(DEMO_PICTURES) as archive:
        taken: dict[str, int] = {}
        for name in sorted(archive.namelist()):
            split, _, rest = name.partition("/")
            label = rest.partition("/")[0]
            if split == "train" and not name.endswith("/") and taken.get(label, 0) < each:
                taken[label] = taken.get(label, 0) + 1
                archive.extract(name, folder)
    return folder


def cpu_seconds() -> float:
    """The processor's time of all commands so far, with all that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def per_picture(python: Path, bundle: Path, work: Path, budget: int) -> float:
    """Processor seconds that precompute takes for a picture within a budget."""
    taken, new = [], []
    for data in ("few", "all", "all"):
        before = cpu_seconds()
        found = answer(
            python, "precompute", "--bundle", bundle, "--data", work / data,
            "--cache", work / f"cache-{budget}", "--budget", budget,
        )  # fmt: skip
        new.append(int(found["new"]))
        taken.append(cpu_seconds() - before)
    return (taken[1] - taken[2]) / new[1]


def row(given: argparse.Namespace, model: str, work: Path) -> dict[str, Any]:
    """Export, plan and precompute one model in a folder; a bundle that is there costs no export."""
    some_pictures(work / "few", 1)
    some_pictures(work / "all", given.pictures)
    bundle, seconds = given.bundle, ""
    if bundle is None:
        bundle = work / "bundle"
        started = cpu_seconds()
        words = ["--model", model, "--pretrained", "none", "--engine", "stock", "--out", bundle]
        if given.tokenizer:
            words += ["--tokenizer", given.tokenizer]
        answer(Path(sys.executable), "export", *words)
        seconds = f"{cpu_seconds() - started:.0f}"
    # a small budget is supervised by a smaller process, which counts in it
    planned = answer(
        given.python,
        "plan",
        "--bundle",
        bundle,
        "--data",
        work / "all",
        "--budget",
        "400MB",
        code=3,
    )
    smallest = int(planned["minimum_budget_bytes"])
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    values = (
        model, f"{size / 1e6:.0f}", seconds, f"{smallest / 1e6:.0f}",
        f"{per_picture(given.python, bundle, work, smallest + _SUPERVISOR):.3f}",
        f"{given.ample / 1e6:.0f}",
        f"{per_picture(given.python, bundle, work, given.ample):.3f}", 10 * given.pictures,
    )  # fmt: skip
    return dict(zip(HEADER, values, strict=True))


def main() -> None:
    """Measure the models named and add their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--bundle", type=Path, help="of that one model, in place of its export")
    parser.add_argument("--tokenizer", type=Path, help="folder, where it cannot be downloaded")
    parser.add_argument("--python", type=Path, default=Path(sys.executable), help="of a device")
    parser.add_argument("--pictures", type=int, default=3, help="of each of ten classes")
    parser.add_argument("--ample", type=int, default=4 * 10**9, help="bytes")
    parser.add_argument("--csv", type=Path, required=True, help="rows are added to it")
    given = parser.parse_args()
    for model in given.model:
        with tempfile.TemporaryDirectory() as work:
            found = row(given, model, Path(work))
        fresh = not given.csv.exists()
        with given.csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, HEADER)
            if fresh:
                writer.writeheader()
            writer.writerow(found)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
