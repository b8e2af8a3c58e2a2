"""The runs below a folder: which there are, which one is pinned, and how one is removed.

Standard library only, and nothing but small files is read: a list of a hundred runs is quick.

    runs/pinned.json      {"run": "<name>"}: what `predict` and its like use where none is named
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgeladder.core import disk
from edgeladder.core.errors import ConfigError
from edgeladder.core.files import read_json, storage_errors, write_json
from edgeladder.core.intervals import Interval, of_share

PINNED = "pinned.json"
_REMOVED = ".removed"  # end of a run's name while its files go
# all that a run, its later commands and the demo write into a run's folder
_OURS = re.compile(
    r"(config\.yaml|plan\.json|environment\.json|metrics\.jsonl|selection\.safetensors"
    r"|pseudo_labels\.safetensors"
    r"|result\.json|adapter\.safetensors|adapter\.json(\.sig|\.mac)?|evaluation\.json"
    r"|comparison\.json|report\.html|worker\.log|\.lock|\.[\w.-]+\.\d+\.tmp"
    r"|checkpoints/(fold-\d+/)?\.?step-\d+\.safetensors(\.\d+\.tmp)?"
    r"|folds/\d+\.safetensors"
    r"|cache/(image|text)-[0-9a-f]{16}-(fp16|int8)(-\w+)?"
    r"/(\.lock|index\.safetensors|\d+\.safetensors)"
    r"|cache/\.in-use"
    r"|cache/work-\d+/[\w.-]+\.spill)"
)


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One run in a list; what a run does not say is None."""

    run: str  # its folder
    name: str
    state: Literal["finished", "unfinished", "damaged"]
    pinned: bool = False
    age_seconds: float = 0.0
    classes: int | None = None
    train_pictures: int | None = None
    accuracy: float | None = None
    zero_shot_accuracy: float | None = None
    count: int | None = None  # pictures that it was judged on
    interval: Interval | None = None  # Wilson's 95 % of `accuracy`
    zero_shot_interval: Interval | None = None
    split: str | None = None
    peak_bytes: int | None = None  # the highest of its phases
    budget_bytes: int | None = None
    disk_bytes: int = 0


def list_runs(folder: Path) -> list[RunSummary]:
    """Every run below a folder, newest first; a damaged one is listed as such."""
    found = [path.parent for path in folder.glob("*/config.yaml")]
    found += [path.parent for path in folder.glob("*/adapter.json")]
    pinned = pinned_run(folder)
    now = time.time()
    runs = [
        replace(_summary(run, now), pinned=pinned is not None and run.name == pinned.name)
        for run in set(found)
        if not run.name.startswith(".")
    ]
    return sorted(runs, key=lambda item: (item.age_seconds, item.name))


def _summary(run: Path, now: float) -> RunSummary:
    record = run / "adapter.json"
    made = (record if record.is_file() else run / "config.yaml").stat().st_mtime
    size = sum(path.lstat().st_size for path in run.rglob("*") if not path.is_dir())
    plain = RunSummary(
        run=str(run),
        name=run.name,
        state="finished" if record.is_file() else "unfinished",
        age_seconds=max(0.0, now - made),
        disk_bytes=size,
    )
    if not (run / "result.json").is_file():
        return plain
    try:
        return _told(plain, read_json(run / "result.json"))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        return replace(plain, state="damaged")


def _told(plain: RunSummary, result: dict[str, Any]) -> RunSummary:
    """What a run's result.json adds."""
    accuracy, counts, memory = result["accuracy"], result["counts"], result["memory"]
    tuned, zero_shot = _share(accuracy["tuned"]), _share(accuracy["zero_shot"])
    count = int(accuracy["count"])
    peaks = [int(phase["measured_peak_bytes"]) for phase in memory["phases"].values()]
    return replace(
        plain,
        classes=int(counts["classes"]),
        train_pictures=int(counts["train"]),
        accuracy=tuned,
        zero_shot_accuracy=zero_shot,
        count=count,
        interval=of_share(tuned, count),
        zero_shot_interval=of_share(zero_shot, count),
        split=str(accuracy["split"]),
        peak_bytes=max(peaks, default=None),
        budget_bytes=int(memory["budget_bytes"]),
    )


def _share(value: Any) -> float | None:
    return None if value is None else float(value)


def pinned_run(folder: Path) -> Path | None:
    """The run that is pinned below `folder`; None where none is.

    Raises:
        ConfigError: the pin cannot be read, or its run is gone.
    """
    path = folder / PINNED
    if not path.is_file():
        return None
    run = folder
    try:
        name = str(read_json(path)["run"])
        run = folder / name
        known = Path(name).name == name and (run / "adapter.json").is_file()
    except (ValueError, LookupError, TypeError):
        name, known = "?", False
    if not known:
        raise ConfigError(
            f"the pinned run {name!r} is not there any more",
            where=str(path),
            remedy="`edgeladder runs unpin`, or pin another with `edgeladder runs pin RUN`",
        )
    return run


def pin_run(run: Path) -> None:
    """Serve this run where none is named, until another is pinned.

    Raises:
        ConfigError: it has no adapter.
        StorageError: the disk is full.
    """
    if not (run / "adapter.json").is_file():
        raise ConfigError(
            "only a finished run can be pinned",
            where=str(run),
            remedy=f"finish it with `edgeladder train --resume {run}`",
        )
    write_json(run.parent / PINNED, {"run": run.resolve().name})


def unpin(folder: Path) -> bool:
    """Serve the newest run again; whether one was pinned."""
    path = folder / PINNED
    there = path.is_file()
    with storage_errors(path):
        disk.unlink(path)
        if there:
            disk.fsync_directory(folder)
    return there


def removable_bytes(run: Path) -> int:
    """Bytes that removing a run frees.

    Raises:
        ConfigError: no run, pinned, or with files in it that EdgeLadder did not write.
    """
    if not ((run / "config.yaml").is_file() or (run / "adapter.json").is_file()):
        raise ConfigError(
            "no run here", where=str(run), remedy="`edgeladder runs` lists those there are"
        )
    if _pinned_name(run.parent) == run.resolve().name:
        raise ConfigError(
            "this run is pinned", where=str(run), remedy="`edgeladder runs unpin` first"
        )
    size = 0
    for path in sorted(run.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(run).as_posix()
        if path.is_symlink() or not _OURS.fullmatch(name):
            raise ConfigError(
                f"the folder holds what EdgeLadder did not write: {name}",
                where=str(run),
                remedy="move it away, then remove the run",
            )
        size += path.stat().st_size
    return size


def remove_run(run: Path) -> None:
    """Remove the folder of a run that `removable_bytes` found to be one.

    It loses its name at once and its files after, so that a power cut leaves the run or none.

    Raises:
        StorageError: the disk is read-only.
    """
    with storage_errors(run):
        sweep(run.parent)
        leaving = run.with_name(f".{run.name}.{os.getpid()}{_REMOVED}")
        disk.replace(run, leaving)
        disk.remove_tree(leaving)


def _pinned_name(folder: Path) -> str | None:
    with contextlib.suppress(ConfigError):
        pinned = pinned_run(folder)
        return None if pinned is None else pinned.name
    return None


def sweep(folder: Path) -> None:
    """Remove what a removal that was cut short left behind."""
    for path in folder.glob(f".*{_REMOVED}"):
        owner = path.name.removesuffix(_REMOVED).rpartition(".")[2]
        if owner.isdigit() and not Path("/proc", owner).exists():
            disk.remove_tree(path)
