"""What a model costs: bundle, export, pictures a second, smallest budget. One row a model.

    python -m tools.bench.model_row --model ViT-B-16 --csv tools/bench/results/models.csv

Untrained weights (`--pretrained none`), profile `default`, float32, stock engine: time and memory
do not depend on the weights' values. Precompute runs twice, within the smallest budget (segment by
segment) and within `--ample` (the whole tower, where it fits). Each is a command of its own.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from edgeladder.core.shipped import DEMO_PICTURES

HEADER = (
    "model", "bundle_mb", "export_seconds", "smallest_budget_mb",
    "smallest_pictures_per_second", "ample_budget_mb", "ample_pictures_per_second", "pictures",
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


def rate(bundle: Path, data: Path, cache: Path, budget: int) -> float:
    """Pictures a second of precompute within a budget, the model's opening included."""
    found = answer(
        "precompute", "--bundle", bundle, "--data", data, "--cache", cache, "--budget", budget
    )
    return float(found["new"]) / float(found["seconds"])


def row(model: str, pictures: int, ample: int, work: Path) -> dict[str, Any]:
    """Export, plan and precompute one model in a folder."""
    data, bundle = few_pictures(work / "pictures", pictures), work / "bundle"
    started = time.monotonic()
    answer("export", "--model", model, "--pretrained", "none", "--engine", "stock", "--out", bundle)
    seconds = time.monotonic() - started
    smallest = int(answer("plan", "--bundle", bundle, "--data", data)["minimum_budget_bytes"])
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    values = (
        model, f"{size / 1e6:.0f}", f"{seconds:.0f}", f"{smallest / 1e6:.0f}",
        f"{rate(bundle, data, work / 'streamed', smallest):.2f}", f"{ample / 1e6:.0f}",
        f"{rate(bundle, data, work / 'whole', ample):.2f}", pictures,
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
