"""precompute on the CPU and on another provider, alternating; run by `tools/providers`.

    python -m tools.provider_times BUNDLE PICTURES [--provider openvino] [--budget 700MB] [--runs 3]

Prints one JSON object: medians of seconds, the trial's difference, and planned and measured peaks.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

RUN = "from edgeladder.cli.app import run; run()"


def command(words: list[str], folder: Path) -> dict[str, Any]:
    """An EdgeLadder command's JSON."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words, "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(words)}: {done.stdout[-500:]} {done.stderr[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def once(options: argparse.Namespace, provider: str, folder: Path) -> dict[str, Any]:
    """precompute into an empty cache."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    place = ["--bundle", options.bundle, "--data", options.pictures, "--budget", options.budget]
    return command(["precompute", *place, "--provider", provider], folder)


def main() -> None:
    """Alternate, and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("pictures", type=lambda text: str(Path(text).resolve()))
    parser.add_argument("--provider", default="openvino")
    parser.add_argument("--budget", default="700MB")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    if Path(options.bundle).exists():
        options.bundle = str(Path(options.bundle).resolve())
    names = ("cpu", options.provider)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as work:
        once(options, options.provider, Path(work))  # its trial, and the towers' files in memory
        for _ in range(options.runs):
            for name in names:
                found[name].append(once(options, name, Path(work)))
    answer = {
        name: {
            "seconds": round(median(item["seconds"] for item in runs), 2),
            "images_per_second": round(median(item["images_per_second"] for item in runs), 2),
            "peaks": runs[-1]["memory"]["phases"]["precompute"],
            "provider": runs[-1]["provider"],
        }
        for name, runs in found.items()
    }
    print(json.dumps(answer, indent=1))


if __name__ == "__main__":
    main()
