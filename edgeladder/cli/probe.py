"""`edgeladder devices probe`: this machine's facts as a device profile."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer

from edgeladder.budget import kernel_marks, meter
from edgeladder.cli import options
from edgeladder.cli.output import Answer
from edgeladder.core.errors import ConfigError

_SHARE = 0.75  # of the memory, as the shipped profiles of boxes without a desktop leave it
_KNOWN = {"aarch64": "aarch64", "arm64": "aarch64", "armv7l": "armv7l", "x86_64": "x86_64"}
_ACCELERATORS = {"/dev/nvhost-gpu": "NVIDIA, integrated", "/dev/nvidia0": "NVIDIA"}

Out = Annotated[Path | None, typer.Option("--out", help="YAML file to write. [default: on stdout]")]


def probe(out: Out = None, as_json: options.Json = False) -> Answer:
    """Write a profile of this machine, for `--device FILE` here and in a fleet.

    Example: edgeladder devices probe --out my-box.yaml
    """
    import yaml

    from edgeladder.core.config import DeviceProfile
    from edgeladder.core.files import write_text
    from edgeladder.core.yaml_config import validate

    if out is not None and out.exists():
        raise ConfigError(
            f"{out} is there already", where="--out", remedy="name another file, or remove it"
        )
    values = facts(name=out.stem if out is not None else platform.node() or "this-machine")
    validate(DeviceProfile, values, where="this machine")
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    if out is None:
        return Answer(values, text.rstrip())
    write_text(out, f"# edgeladder train --device {out}\n{text}")
    return Answer({**values, "path": str(out)}, f"{out}: use it with --device {out}")


def facts(name: str, *, root: Path = Path("/")) -> dict[str, Any]:
    """What a device profile says, measured here.

    Raises:
        ConfigError: a processor that no profile knows.
    """
    machine = platform.machine()
    if machine not in _KNOWN:
        raise ConfigError(
            f"profiles know no processor {machine!r}",
            remedy="write the file by hand: `edgeladder devices show raspberry-pi-5`",
        )
    total = meter.total_bytes()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = (item for path, item in _ACCELERATORS.items() if (root / path.lstrip("/")).exists())
    return {
        "name": name,
        "summary": _model(root) or f"{machine}, {total / 1e9:.0f} GB",
        "ram_bytes": total,
        "default_budget_bytes": int(_SHARE * total) // 10**7 * 10**7,
        "cores": cores or 1,
        "architecture": _KNOWN[machine],
        "accelerator": next(found, None),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "thermal_zones": sorted(set(_zones(root))),
        "shared_gpu_memory": kernel_marks.gpu_bytes() is not None
        and (root / "dev/nvhost-gpu").exists(),
        "sources": {
            "ram_bytes": "MemTotal of /proc/meminfo on this machine",
            "default_budget_bytes": "our choice: three quarters of the memory",
        },
    }


def _model(root: Path) -> str:
    """The board's name, where a device tree tells it."""
    try:
        return (root / "proc/device-tree/model").read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _zones(root: Path) -> list[str]:
    found = []
    for path in sorted((root / "sys/class/thermal").glob("thermal_zone*/type")):
        try:
            found.append(path.read_text(errors="replace").strip())
        except OSError:  # a zone that is switched off
            continue
    return [name for name in found if name]
