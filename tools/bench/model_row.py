"""What a model costs: bundle, export, time of a picture, smallest budget. One row a model.

    python -m tools.bench.model_row --model ViT-B-16 --csv tools/bench/results/models.csv

Untrained weights (`--pretrained none`), profile `default`, float32, stock engine: time and memory
do not depend on the weights' values. Times are the processor's, so that other work on the machine
counts little. Precompute runs within the smallest budget (segment by segment) and within `--ample`
(the whole tower, where it fits), each once for the pictures and once more with all of them cached,
which costs all but the pictures. Each is a command of its own.
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

HEADER = (
    "model", "bundle_mb", "export_cpu_seconds", "smallest_budget_mb",
    "smallest_cpu_seconds_per_picture", "ample_budget_mb", "ample_cpu_seconds_per_picture",
    "pictures",
)  # fmt: skip


def answer(*words: object) -> dict[str, Any]:
    """A command's JSON.

    Raises:
        RuntimeError: it failed.
    """
    line = [sys.executable, "-m", "edgeladder", *map(str, words), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)}: {done.stdout}{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def few_pictures(folder: Path, count: int) -> Path:
    """So many training pictures of the sample that ships, a folder a class."""
    with zipfile.ZipFile(DEMO_PICTURES) as archive:
        names = [name for name in archive.namelist() if name.startswith("train/")]
        names = [name for name in names if not name.endswith("/")]
        archive.extractall(folder, names[:: len(names) // count][:count])
    return folder


def cpu_seconds() -> float:
    """The processor's time of all commands so far, with all that they waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def per_picture(bundle: Path, data: Path, cache: Path, budget: int) -> float:
    """Processor seconds that precompute takes for a picture within a budget."""
    words = ("precompute", "--bundle", bundle, "--data", data, "--cache", cache)
    taken, new = [], 0
    for _ in range(2):
        before = cpu_seconds()
        new = max(new, int(answer(*words, "--budget", budget)["new"]))
        taken.append(cpu_seconds() - before)
    return (taken[0] - taken[1]) / new


def row(model: str, pictures: int, ample: int, work: Path) -> dict[str, Any]:
    """Export, plan and precompute one model in a folder."""
    data, bundle = few_pictures(work / "pictures", pictures), work / "bundle"
    started = cpu_seconds()
    answer("export", "--model", model, "--pretrained", "none", "--engine", "stock", "--out", bundle)
    seconds = cpu_seconds() - started
    # a small budget is supervised by a smaller process, which counts in it
    planned = answer("plan", "--bundle", bundle, "--data", data, "--budget", "400MB")
    smallest = int(planned["minimum_budget_bytes"])
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    values = (
        model, f"{size / 1e6:.0f}", f"{seconds:.0f}", f"{smallest / 1e6:.0f}",
        f"{per_picture(bundle, data, work / 'streamed', smallest):.3f}", f"{ample / 1e6:.0f}",
        f"{per_picture(bundle, data, work / 'whole', ample):.3f}", pictures,
    )  # fmt: skip
    return dict(zip(HEADER, values, strict=True))


def main() -> None:
    """Measure the models named and add their rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--ample", type=int, default=4 * 10**9, help="bytes")
    parser.add_argument("--csv", type=Path, required=True, help="rows are added to it")
    given = parser.parse_args()
    for model in given.model:
        with tempfile.TemporaryDirectory() as work:
            found = row(model, given.pictures, given.ample, Path(work))
        fresh = not given.csv.exists()
        with given.csv.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, HEADER)
            if fresh:
                writer.writeheader()
            writer.writerow(found)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
