"""A whole tuning inside a box of memory that the kernel closes: precompute, train, evaluate.

    tools/bench/small_box                         ViT-B/16, 1,600 pictures, 192 MB
    tools/bench/small_box --model ViT-L/14 --budget 240MB

Every process of the tuning, the supervisor included, is put into one cgroup whose limit is the
budget, swap off. Within it EdgeLadder gets the same number as its --budget, so that its own plan,
watch and limit are at work too. Pictures are generated, weights are untrained unless --bundle
names a bundle: memory and time do not depend on either. Prints the peaks: as EdgeLadder measured
them, as seen from outside every 50 ms, and the kernel's own mark for the cgroup (page cache of the
files read included, which the kernel gives up before it kills).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from edgeladder.budget.limits import MemoryLimit, open_limit  # noqa: E402
from edgeladder.core.errors import EdgeLadderError  # noqa: E402
from edgeladder.core.sizes import parse_size  # noqa: E402
from tools.bench.outside import TreeSampler  # noqa: E402

MB = 1_000_000
_PICTURES = """
import sys
from pathlib import Path
import numpy as np
from PIL import Image
folder, classes, each = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
random = np.random.default_rng(0)
for k in range(classes):
    colour = random.integers(40, 215, 3)
    (folder / f"class{k:03d}").mkdir(parents=True)
    for index in range(each):
        small = np.clip(colour + random.normal(0, 40, (12, 12, 3)), 0, 255).astype(np.uint8)
        picture = Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC)
        picture.save(folder / f"class{k:03d}" / f"{index:02d}.jpg", quality=90)
"""


def make_pictures(folder: Path, classes: int, count: int) -> None:
    """Generate `count` JPEG pictures of 320 x 240 in `classes` folders, once."""
    if folder.is_dir():
        return
    print(f"making {count} pictures in {folder}", file=sys.stderr)
    building = folder.with_name(folder.name + ".new")
    arguments = [str(building), str(classes), str(count // classes)]
    subprocess.run([sys.executable, "-c", _PICTURES, *arguments], check=True)
    building.rename(folder)


def make_bundle(bundle: Path, model: str, profile: str, host_python: str) -> None:
    """Export an untrained bundle with a host environment's Python, once."""
    if (bundle / "manifest.json").is_file():
        return
    print(f"exporting {model} to {bundle}", file=sys.stderr)
    code = "from edgeladder.cli.app import run; run()"
    command = [host_python, "-c", code, "export", "--model", model]
    command += ["--pretrained", "none", "--profile", profile, "--out", str(bundle)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    subprocess.run(command, check=True, env=environment, stdout=sys.stderr)


def box(limit_bytes: int) -> MemoryLimit:
    """A cgroup with the limit; without one this demonstration proves nothing."""
    for layer in ("cgroup2", "cgroup1"):
        try:
            return open_limit(layer, limit_bytes)
        except EdgeLadderError as error:
            print(f"no {layer}: {error.where}", file=sys.stderr)
    sys.exit("small_box needs a cgroup it may make: run it as root, or under systemd-run")


def tune(request: dict[str, Any], limit: MemoryLimit) -> dict[str, Any]:
    """Run the supervisor inside the box and watch it from outside."""
    told = json.dumps({"command": "train", "json": True, "request": request})
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeladder.jobs", told],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=limit.enter,
    )
    # often enough to see every segment and step, seldom enough to leave two cores to the work
    sampler = TreeSampler(process.pid, interval_seconds=0.05)
    sampler.start()
    output, _ = process.communicate()
    return {
        "exit_code": process.returncode,
        "seconds": round(time.monotonic() - started, 1),
        "seen_from_outside_peak_bytes": sampler.stop(),
        "samples": sampler.samples,
        "kernel_peak_bytes": limit.peak_bytes(),
        "kernel_limit_bytes": limit.limit_bytes,
        "kernel_kills": limit.kills(),
        "result": json.loads(output) if output.strip() else None,
    }


def show(done: dict[str, Any], budget: int) -> str:
    """The peaks in a few lines."""
    lines = [f"exit code {done['exit_code']} after {done['seconds']} s"]
    result = done["result"] or {}
    for name, phase in result.get("memory", {}).get("phases", {}).items():
        measured, planned = phase["measured_peak_bytes"], phase["planned_peak_bytes"]
        lines.append(f"{name:<11} {measured / MB:6.1f} MB  (planned {planned / MB:.1f})")
    seen = done["seen_from_outside_peak_bytes"]
    lines.append(f"{'outside':<11} {seen / MB:6.1f} MB  ({done['samples']} samples)")
    kernel = done["kernel_peak_bytes"]
    if kernel is not None:
        lines.append(f"{'kernel':<11} {kernel / MB:6.1f} MB  (page cache included)")
    lines.append(f"{'limit':<11} {budget / MB:6.1f} MB, {done['kernel_kills']} killed by it")
    if "throughput" in result:
        speed = result["throughput"]
        lines.append(
            f"precompute {speed['precompute_images_per_second']:.2f} pictures/s, "
            f"step {speed['step_ms_median']:.0f} ms"
        )
    if "error" in result:
        lines.append(json.dumps(result["error"]))
    return "\n".join(lines)


def main() -> int:
    """Prepare outside the box, tune inside it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="ViT-B/16")
    parser.add_argument("--profile", default="default")
    parser.add_argument("--budget", default="192MB")
    parser.add_argument("--pictures", type=int, default=1600)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("small_box"), help="for its files")
    parser.add_argument("--bundle", type=Path, help="use this one instead of exporting")
    parser.add_argument("--host-python", default=sys.executable, help="with edgeladder[host]")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    budget = parse_size(options.budget)
    options.folder.mkdir(parents=True, exist_ok=True)
    pictures = options.folder / f"pictures-{options.pictures}-{options.classes}"
    make_pictures(pictures, options.classes, options.pictures)
    bundle = options.bundle or options.folder / ("bundle-" + options.model.replace("/", "-"))
    make_bundle(bundle, options.model, options.profile, options.host_python)
    request = {
        "bundle": str(bundle),
        "data": str(pictures),
        "cache": str(options.folder / ("cache-" + bundle.name)),
        "run": str(options.folder / f"run-{os.getpid()}"),
        "budget_bytes": budget,
        "threads": options.threads,
        "overrides": [f"train.epochs={options.epochs}"],
    }
    limit = box(budget)
    try:
        done = tune(request, limit)
    finally:
        limit.close()
    print(json.dumps(done) if options.json else show(done, budget))
    return int(done["exit_code"])


if __name__ == "__main__":
    sys.exit(main())
