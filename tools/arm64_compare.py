"""Beside tools/arm64: chooses a few pictures, and holds two machines' results together.

python tools/arm64_compare.py sample PICTURES.zip FOLDER
python tools/arm64_compare.py compare FOLDER
"""

from __future__ import annotations

import json
import math
import sys
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

TOLERANCE = 1e-4
FP16_UNIT = 2**-10  # largest relative step from one fp16 number to the next
TYPES = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "I8": np.int8}
MOST = {"train": 1, "test": 1}  # pictures per class: emulation is slow


def sample(archive: Path, folder: Path) -> None:
    """A few pictures of every class, in the archive's own order."""
    seen: Counter[PurePosixPath] = Counter()
    with zipfile.ZipFile(archive) as pictures:
        for name in sorted(pictures.namelist()):
            path = PurePosixPath(name)
            if path.suffix == ".yaml":
                pictures.extract(name, folder)
            if path.suffix not in (".jpg", ".png"):
                continue
            if seen[path.parent] < MOST[path.parts[0]]:
                seen[path.parent] += 1
                pictures.extract(name, folder)


def losses(run: Path) -> list[float]:
    """The loss of every step of a run."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if row["kind"] == "step"]


def report(folder: Path, machine: str, command: str) -> Any:
    """What a command printed as JSON."""
    return json.loads((folder / f"{machine}.{command}.json").read_text())


def activations(cache: Path) -> dict[tuple[str, str, bytes], np.ndarray]:
    """Every array of a cache by side, field and sample."""
    found = {}
    for shard in cache.glob("*/0*.safetensors"):
        data = shard.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        entries = json.loads(data[8:start])
        del entries["__metadata__"], entries["checks"]  # the checksums of what is compared here
        arrays = {
            name: np.frombuffer(
                data[start:],
                TYPES[entry["dtype"]],
                math.prod(entry["shape"]),
                entry["data_offsets"][0],
            ).reshape(entry["shape"])
            for name, entry in entries.items()
        }
        keys = arrays.pop("keys")
        for name, array in arrays.items():
            for key, value in zip(keys, array, strict=True):
                found[shard.parent.name, name, key.tobytes()] = value.astype(np.float64)
    return found


def same_activations(folder: Path) -> bool:
    """Whether both machines computed the same activations, as far as fp16 tells them apart."""
    here, there = (activations(folder / f"{machine}.cache") for machine in ("x86", "arm"))
    if here.keys() != there.keys():
        print("activations: not the same samples and fields")
        return False
    worst = max(
        float((np.abs(there[key] - value) / (np.abs(value) + np.abs(value).max() / 10)).max())
        for key, value in here.items()
    )
    print(f"{len(here)} activations: largest difference {worst:.1e} (at most {FP16_UNIT:.1e})")
    return len(here) > 0 and worst <= FP16_UNIT


def compare(folder: Path) -> bool:
    """Golden steps, activations, losses and predictions; prints each, tells whether all agree."""
    good = True
    for machine in ("x86", "arm"):
        for engine, row in report(folder, machine, "doctor")["golden"].items():
            good &= row["ok"]
            error = row["loss_error"]
            print(
                f"{machine} golden steps, {engine}: {'ok' if row['ok'] else 'WRONG'}, {error:.1e}"
            )
    good &= same_activations(folder)
    for machine in ("x86", "arm"):  # else the losses would be of each machine's own cache
        good &= report(folder, machine, "train")["cache"]["new"] == 0
    here, there = losses(folder / "x86.run"), losses(folder / "arm.run")
    worst = max(abs(a - b) / abs(b) for a, b in zip(there, here, strict=True))
    good &= len(here) >= 20 and worst <= TOLERANCE
    print(f"{len(here)} losses: largest relative difference {worst:.1e} (at most {TOLERANCE:.0e})")
    labels = [
        {
            "/".join(row["path"].split("/")[-2:]): row["labels"][0]["label"]
            for row in found["predictions"]
        }
        for found in (report(folder, machine, "predict") for machine in ("x86", "arm"))
    ]
    same = sum(labels[1][name] == label for name, label in labels[0].items())
    print(f"predictions: {same} of {len(labels[0])} pictures with the same label")
    return good and same == len(labels[0])


def main() -> None:
    """`sample ARCHIVE FOLDER` or `compare FOLDER`."""
    match sys.argv[1:]:
        case ["sample", archive, folder]:
            sample(Path(archive), Path(folder))
        case ["compare", folder]:
            raise SystemExit(0 if compare(Path(folder)) else 1)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
