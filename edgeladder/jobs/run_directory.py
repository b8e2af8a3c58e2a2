"""The run directory (contract 6): every file of a run, and who may write there.

config.yaml          the resolved configuration
plan.json            predicted peak per phase and the sizes chosen
environment.json     machine, versions, bundle, limit
metrics.jsonl        one line per step and per event, only ever appended to
checkpoints/         two generations, until the run is finished
adapter.safetensors  the trained parameters, adapter.json says of what
result.json          what `train --json` printed
selection.safetensors  which cached pictures train and which test
pseudo_labels.safetensors  labels that unlabelled pictures were given, and what came of it
worker.log           each phase: versions, limit, sizes, what its worker said, how it ended
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from edgeladder.core import disk
from edgeladder.core.errors import ConfigError
from edgeladder.core.event_file import EventFile
from edgeladder.core.files import storage_errors
from edgeladder.core.locks import Tell, take_lock
from edgeladder.core.plain_files import open_plain

METRICS = "metrics.jsonl"


class MetricsLog:
    """Appends whole lines, so that several processes can write and followers can read by offset."""

    def __init__(self, path: Path, tensorboard: str | None = None):
        """Open the file to append to.

        Args:
            tensorboard: a folder of TensorBoard's, in which this run gets one of its name.
        """
        self.path = Path(path)
        self._events: EventFile | None = None
        if tensorboard is not None:
            self._events = EventFile(Path(tensorboard) / self.path.absolute().parent.name)
        with storage_errors(self.path):
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                disk.write(self._descriptor, b"\n")  # a power cut left half a line

    def __call__(self, values: dict[str, Any]) -> None:
        """Append one record, stamped with the time.

        Raises:
            StorageError: the disk is full.
        """
        line = json.dumps({"time": round(time.time(), 3), **values}) + "\n"
        with storage_errors(self.path):
            disk.write(self._descriptor, line.encode())
        if self._events is not None:
            self._events.record(values)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)
        if self._events is not None:
            self._events.close()


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Records of a metrics file; half a line from a power cut is passed over."""
    with TextIOWrapper(open_plain(path), encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record


class RunDirectory:
    """Paths of a run."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.plan = self.folder / "plan.json"
        self.environment = self.folder / "environment.json"
        self.metrics = self.folder / METRICS
        self.checkpoints = self.folder / "checkpoints"
        self.adapter = self.folder / "adapter.safetensors"
        self.adapter_record = self.folder / "adapter.json"
        self.selection = self.folder / "selection.safetensors"
        self.pseudo_labels = self.folder / "pseudo_labels.safetensors"
        self.result = self.folder / "result.json"
        self.log = self.folder / "worker.log"
        self._lock: int | None = None

    def lock(self, tell: Tell | None = None) -> None:
        """Take the run for this process and the workers that it hands the lock to.

        Args:
            tell: told what is waited for, where another process has it.

        Raises:
            ConfigError: another process is training in it, and goes on doing so.
            StorageError: the folder cannot be made.
        """
        with storage_errors(self.folder):
            disk.make_folders(self.folder)
            self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        if not take_lock(self._lock, f"the run {self.folder}", tell):
            self.unlock()
            raise ConfigError(
                "another process is training in this run directory",
                where=str(self.folder),
                remedy="wait for it, stop it, or choose another folder with --run",
            )

    @property
    def lock_descriptor(self) -> int | None:
        """The lock that this process holds, for a worker to hold as well; None: none."""
        return self._lock

    def unlock(self) -> None:
        """Let others have the run."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def started(self) -> bool:
        """Whether a run was configured here before."""
        return self.config.is_file()


def new_run_folder(parent: Path) -> Path:
    """A folder name below `parent` that is not taken: the time, and a number if need be."""
    stem = time.strftime("%Y%m%d-%H%M%S")
    for number in range(1000):
        folder = parent / (stem if not number else f"{stem}-{number}")
        if not folder.exists():
            return folder
    raise ConfigError("a thousand runs began this second", where=str(parent), remedy="use --run")
