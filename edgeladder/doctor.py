"""What this machine is, what will work on it, and how to fix what won't."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from edgeladder import __version__
from edgeladder.budget.policy import LEAST_USEFUL_BYTES, PROBE_LIMIT_BYTES
from edgeladder.core.errors import ConfigError, EdgeLadderError, IntegrityError
from edgeladder.core.records import to_json
from edgeladder.core.sizes import format_size
from edgeladder.runtime import exact_sums

_NEEDED_PACKAGES = (
    "numpy", "pillow", "psutil", "pydantic", "pyyaml", "rich", "tokenizers", "typer",
)  # fmt: skip
_LEAST_DISK_BYTES = 500_000_000  # cache of some thousand pictures, a run and its checkpoints


@dataclass(frozen=True)
class Check:
    """One line of the examination."""

    name: str
    status: Literal["ok", "warning", "failed"]
    detail: str
    remedy: str | None = None
    exit_code: int = 0  # of the command, where this line failed


@dataclass
class Machine:
    """Facts about this machine, bytes and counts as plain numbers; None where nobody looked."""

    model: str
    architecture: str
    cores: int
    ram_bytes: int
    available_bytes: int
    swap_bytes: int
    system: str
    python: str
    edgeladder: str = __version__
    device: str | None = None  # the shipped profile that fits
    engines: list[str] | None = None
    onnxruntime: str | None = None
    limit: str | None = None  # layer of the kernel's limit on memory
    disk_free_bytes: int | None = None


@dataclass
class Examination:
    """All that `edgeladder doctor` found."""

    machine: Machine
    checks: list[Check] = field(default_factory=list)
    golden: dict[str, Any] | None = None  # a bundle's replayed steps

    @property
    def exit_code(self) -> int:
        """0, or that of the first line that failed."""
        return next((check.exit_code for check in self.checks if check.status == "failed"), 0)

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "healthy": self.exit_code == 0,
            "machine": to_json(self.machine),
            "checks": [dataclasses.asdict(check) for check in self.checks],
            "golden": self.golden,
        }

    def text(self) -> str:
        """For a person: one line a check, and how to fix what is wrong."""
        marks = {"ok": "ok     ", "warning": "warning", "failed": "FAILED "}
        lines = []
        for check in self.checks:
            lines.append(f"{marks[check.status]}  {check.name}: {check.detail}")
            if check.remedy:
                lines.append(f"         fix: {check.remedy}")
        return "\n".join(lines)


def examine(bundle: Path | None = None) -> Examination:
    """Look at this machine, and at a bundle if one is named.

    Args:
        bundle: a bundle whose files are hashed and whose golden steps are replayed.
    """
    found = Examination(machine=describe_machine())
    machine = found.machine
    found.checks.append(
        Check(
            "machine",
            "ok",
            f"{machine.model}, {machine.architecture}, {machine.cores} cores, "
            f"{format_size(machine.ram_bytes)} RAM, "
            f"{format_size(machine.available_bytes)} available",
        )
    )
    looks = (_device, _python, _packages, _engines, _int8, _accelerator, _memory, _limit, _disk)
    for check in looks:
        found.checks.append(check(machine))
    if bundle is not None:
        found.checks.extend(_bundle(bundle, found))
    return found


def describe_machine() -> Machine:
    """Look at this machine."""
    import psutil

    memory = psutil.virtual_memory()
    return Machine(
        model=_model(),
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        ram_bytes=memory.total,
        available_bytes=memory.available,
        swap_bytes=psutil.swap_memory().total,
        system=platform.platform(),
        python=platform.python_version(),
        edgeladder=__version__,
    )


def _model() -> str:
    """The board's name from the device tree, else the processor's."""
    try:
        return Path("/proc/device-tree/model").read_text(encoding="utf-8").strip("\0\n ")
    except (OSError, UnicodeDecodeError):
        pass
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def suggest_device(model: str, architecture: str, ram_bytes: int) -> str | None:
    """The shipped device profile that fits a machine: by its board's name, else by its RAM."""
    from edgeladder.core.yaml_config import library, load_device

    words = set(re.findall(r"[a-z]+|\d+", model.lower()))
    best: tuple[int, float] | None = None
    name = None
    for device in map(load_device, library("devices")):
        # the words of jetson-orin-nano-4gb are jetson, orin, nano: the size is matched by the RAM
        board = {w for w in re.findall(r"[a-z]+|\d+(?!\d*gb)", device.name) if w != "gb"}
        generic = device.name.startswith(("generic", "x86"))
        fits = device.ram_bytes <= 1.05 * ram_bytes  # a part of the RAM is the kernel's or GPU's
        if device.architecture != architecture or not (generic and fits or board <= words):
            continue
        score = (0 if generic else len(board), -abs(device.ram_bytes - ram_bytes))
        if best is None or score > best:
            best, name = score, device.name
    return name


def _device(machine: Machine) -> Check:
    from edgeladder.core.yaml_config import load_device

    name = suggest_device(machine.model, machine.architecture, machine.ram_bytes)
    machine.device = name
    if name is None:
        return Check(
            "device", "ok", "no profile ships for it; give --budget, or a YAML of your own"
        )
    budget = format_size(load_device(name).default_budget_bytes)
    return Check("device", "ok", f"--device {name} fits; its default budget is {budget}")


def _python(machine: Machine) -> Check:
    detail = f"Python {machine.python}, edgeladder {__version__} in {sys.prefix}"
    return Check("python", "ok", detail)


def _packages(machine: Machine) -> Check:
    missing = []
    for name in _NEEDED_PACKAGES:
        try:
            metadata.distribution(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        return Check("packages", "failed", f"missing: {', '.join(missing)}", remedy, 2)
    return Check("packages", "ok", "all that the device side needs")


def _engines(machine: Machine) -> Check:
    from edgeladder.runtime.engine import environment

    try:
        environment.check_environment()
        import onnxruntime
    except ConfigError as error:
        return Check("engines", "failed", error.message, error.remedy, error.exit_code)
    except ImportError as error:
        remedy = "pip install --force-reinstall --no-deps onnxruntime"
        return Check("engines", "failed", f"onnxruntime does not import: {error}", remedy, 2)
    engines = environment.installed_engines()
    machine.engines = engines
    machine.onnxruntime = onnxruntime.__version__
    return Check("engines", "ok", f"{', '.join(engines)} (onnxruntime {onnxruntime.__version__})")


_WHEELS = {
    "jetpack": "the onnxruntime that NVIDIA builds for your JetPack (elinux.org/Jetson_Zoo)",
    "onnxruntime-gpu": "onnxruntime-gpu",
    "onnxruntime-openvino": "onnxruntime-openvino",
}


def _int8(machine: Machine) -> Check:
    return Check("int8 products", "ok", exact_sums.describe())


def _accelerator(machine: Machine) -> Check:
    """What onnxruntime here could run towers on, and which wheel would change it."""
    from edgeladder.core.provider import offered
    from edgeladder.core.yaml_config import load_device

    names = [item.name for item in offered()]
    if names:
        return Check(
            "accelerator",
            "ok",
            f"onnxruntime offers {', '.join(names)}: used where a trial agrees with the CPU and "
            "is faster (--bundle tries it)",
        )
    device = load_device(machine.device) if machine.device else None
    if device is None or device.wheel is None:
        return Check("accelerator", "ok", "onnxruntime here runs on the CPU alone")
    if device.accelerator is None:
        detail = f"onnxruntime here runs on the CPU alone; {device.wheel} may be faster"
        return Check("accelerator", "ok", f"{detail} (docs/accelerators.md)")
    return Check(
        "accelerator",
        "warning",
        f"{device.accelerator} is idle: onnxruntime here runs on the CPU alone",
        f"install {_WHEELS[device.wheel]} in place of onnxruntime, as docs/accelerators.md shows",
    )


def _memory(machine: Machine) -> Check:
    available = machine.available_bytes
    if available < LEAST_USEFUL_BYTES:
        return Check(
            "memory",
            "warning",
            f"{format_size(available)} available; little fits below "
            f"{format_size(LEAST_USEFUL_BYTES)}",
            "stop other programs, or run without a desktop",
        )
    return Check("memory", "ok", f"{format_size(available)} available")


def _limit(machine: Machine) -> Check:
    from edgeladder.budget.limits import open_limit

    limit = open_limit("auto", PROBE_LIMIT_BYTES)
    try:
        machine.limit = limit.layer
    finally:
        limit.close()
    why = "; ".join(limit.notes)
    if limit.layer in ("cgroup2", "cgroup1", "systemd-run"):
        return Check("limit", "ok", f"{limit.layer} bounds memory in the kernel")
    remedy = (
        "run as root or under a user systemd with the memory controller delegated; on Raspberry "
        "Pi OS add cgroup_enable=memory to /boot/firmware/cmdline.txt and reboot"
    )
    if limit.layer == "rlimit":
        return Check("limit", "warning", f"only RLIMIT_DATA bounds memory ({why})", remedy)
    return Check("limit", "warning", f"no kernel limit on memory, only watching ({why})", remedy)


def _disk(machine: Machine) -> Check:
    free = shutil.disk_usage(Path.cwd()).free
    machine.disk_free_bytes = free
    if free < _LEAST_DISK_BYTES:
        detail = f"{format_size(free)} free in {Path.cwd()}"
        return Check("disk", "warning", detail, "free some space, or name a --cache elsewhere")
    return Check("disk", "ok", f"{format_size(free)} free in {Path.cwd()}")


def _bundle(path: Path, found: Examination) -> Iterator[Check]:
    """Verify a bundle's files, then replay its golden steps on each installed engine."""
    from edgeladder.core.bundle import Bundle

    opened: list[Bundle] = []
    yield _tried("bundle", lambda: _verified(path, opened))
    if opened and found.machine.engines is not None:
        yield _tried("golden steps", lambda: _replayed(opened[0], found))
        yield _tried("provider", lambda: _provider(path, found.machine))


def _tried(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", check())
    except EdgeLadderError as error:
        detail = error.message + (f" ({error.where})" if error.where else "")
        return Check(name, "failed", detail, error.remedy, error.exit_code)


def _provider(bundle: Path, machine: Machine) -> str:
    """What runs this bundle's image tower here, and why."""
    from edgeladder.budget.policy import default_budget
    from edgeladder.core.orders import ProviderOrder
    from edgeladder.jobs.providers import Trying, chosen_provider

    trying = Trying(default_budget(None, machine.available_bytes))
    order = ProviderOrder(bundle=str(bundle), threads=None)
    chosen = chosen_provider("auto", order, trying)
    return f"{chosen.name} ({chosen.reason})"


def _verified(path: Path, opened: list[Any]) -> str:
    from edgeladder.core.bundle import Bundle

    bundle = Bundle.open(path)
    opened.append(bundle)
    manifest = bundle.manifest
    size = format_size(sum(record.size for record in manifest.files.values()))
    return f"{manifest.model.name}, {len(manifest.files)} files, {size}, every hash right"


def _replayed(bundle: Any, found: Examination) -> str:
    from edgeladder.runtime.engine.golden import replay

    engines = ["stock"]
    if "ort-training" in (found.machine.engines or ()) and bundle.manifest.ladder.ort_training:
        engines.append("ort-training")
    found.golden = {name: replay(bundle, engine=name) for name in engines}
    for name, result in found.golden.items():
        if not result["ok"]:
            raise IntegrityError(
                f"engine {name} computes other golden steps here than on the host: loss off by "
                f"{result['loss_error']:.1e}, state by {result['state_error']:.1e}",
                where=str(bundle.folder),
                remedy="try another version of onnxruntime, and report these numbers",
            )
    worst = max(result["loss_error"] for result in found.golden.values())
    return f"{', '.join(engines)}: the host's losses to {worst:.0e}"
