"""What EdgeLadder may replace: only what it made itself.

Every writer of a path that a person named asks here first. Each kind of output is known by what
stands in it, so that files of earlier versions are known too, and a folder with a single file
that no export, pull or average wrote is somebody else's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from edgeladder.core.errors import ConfigError
from edgeladder.core.plain_files import LARGEST_RECORD_BYTES, NotPlainError, read_plain

Kind = Literal[
    "bundle", "archive", "run", "cache", "model", "page", "job", "pulled", "average", "adapter"
]

MANIFEST = "manifest.json"  # of a bundle, with the size and hash of every file beside it
SIGNATURE = f"{MANIFEST}.sig"  # of who published it
PULL_RECORD = "pull.json"  # of what was pulled from one box
AVERAGE_RECORD = "aggregate.json"  # of an average of adapters
GENERATOR = '<meta name="generator" content="EdgeLadder">'  # in the head of every page
_EARLIER_PAGE = "EdgeLadder</title>"  # the head of pages before they had a generator
_HEAD_BYTES = 1024
_PRODUCER = re.compile(rb"\x08.\x12.edgeladder ", re.DOTALL)  # ModelProto: ir_version, producer
# what later commands write beside an adapter
_AFTERWARDS = ("evaluation.json", "report.html", "adapter.json.sig", "adapter.json.mac")
_ADAPTER = ("adapter.safetensors", "adapter.json")
_JOB = ("hosts", "average", "failures.json", "refused.json", "report.html")
# a run's files, without those that a run stopped while planning leaves (`.lock`, `worker.log`, an
# empty `checkpoints`); a folder that holds only other files takes a run beside them
_RUN = (
    "config.yaml", "plan.json", "environment.json", "metrics.jsonl", "selection.safetensors",
    "pseudo_labels.safetensors",
    "result.json", *_ADAPTER, *_AFTERWARDS,
)  # fmt: skip


def require_ours(path: str | Path, kind: Kind, *, option: str = "--out") -> None:
    """Refuse to write where something lies that EdgeLadder did not make.

    Args:
        path: what is about to be replaced or written into; absent or empty is always right.
        kind: what will be there: a folder (`bundle`, `run`, `cache`, `adapter`; of a fleet's job
            `job`, `pulled`, `average`) or a file (`archive` of a bundle, ONNX `model`, HTML
            `page`).
        option: the option that named it.

    Raises:
        ConfigError: it is not of that kind; nothing was touched.
    """
    foreign = foreign_part(Path(path), kind)
    if foreign is not None:
        raise ConfigError(
            f"{option} names what EdgeLadder did not make: {foreign}",
            where=str(path),
            remedy=f"choose another {option}, or move away what is there",
        )


def foreign_part(path: Path, kind: Kind) -> str | None:
    """What at `path` is not of EdgeLadder's making, in words; None where nothing is."""
    if not path.exists():
        return None
    if kind in _FILES:
        if not path.is_file():
            return "this is no file"
        return None if not path.stat().st_size else _FILES[kind](path)
    if not path.is_dir():
        return "this is no folder"
    if kind == "cache":  # stores get folders of their own in it, named by a hash
        return None
    return None if not any(path.iterdir()) else _FOLDERS[kind](path)


def manifest_names(content: bytes) -> set[str] | None:
    """The files that a bundle's manifest lists; None where it is no bundle's manifest."""
    manifest = _object(content)
    keys = {"schema_version", "model", "ladder", "files"}
    if manifest is None or not keys <= manifest.keys() or not isinstance(manifest["files"], dict):
        return None
    return set(manifest["files"])


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        return _object(read_plain(path))
    except (OSError, NotPlainError):  # absent, or nothing that a program of ours wrote
        return None


def _first(found: Iterable[str], known: Iterable[str]) -> str | None:
    return next(iter(sorted(set(found) - set(known))), None)


def _files_below(folder: Path) -> list[str]:
    """Whatever is no plain folder, so that links count as files."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_symlink() or not path.is_dir()
    ]


def _foreign_in_bundle(folder: Path) -> str | None:
    try:
        names = manifest_names(read_plain(folder / MANIFEST))
    except (OSError, NotPlainError):
        names = None
    if names is None:
        return "the folder is not empty and holds no bundle"
    return _first(_files_below(folder), {MANIFEST, SIGNATURE, *names})


def _foreign_in_archive(path: Path) -> str | None:
    import tarfile  # here, because the waiting supervisor needs no archives

    try:
        with tarfile.open(path) as archive:
            found = {member.name.removeprefix("./"): member for member in archive}
            stored = archive.extractfile(found[MANIFEST]) if MANIFEST in found else None
            names = manifest_names(stored.read(LARGEST_RECORD_BYTES)) if stored else None
    except (tarfile.TarError, EOFError, ValueError, OverflowError):
        return "no tar archive"
    if names is None:
        return "an archive without a bundle"
    return _first(
        (name for name, m in found.items() if not m.isdir()), {MANIFEST, SIGNATURE, *names}
    )


def _foreign_in_model(path: Path) -> str | None:
    with open(path, "rb") as stream:
        head = stream.read(32)
    return None if _PRODUCER.match(head) else "no ONNX file that deploy wrote"


def _foreign_in_page(path: Path) -> str | None:
    with open(path, "rb") as stream:
        head = stream.read(_HEAD_BYTES).decode("utf-8", errors="replace")
    return None if GENERATOR in head or _EARLIER_PAGE in head else "no page that report wrote"


def _foreign_in_run(folder: Path) -> str | None:
    checkpoints = folder / "checkpoints"
    if checkpoints.exists() and not (checkpoints.is_dir() and not any(checkpoints.iterdir())):
        return "checkpoints"
    return next((name for name in _RUN if (folder / name).exists()), None)


def _foreign_in_job(folder: Path) -> str | None:
    return _first((path.name for path in folder.iterdir()), _JOB)


def _foreign_in_pulled(folder: Path) -> str | None:
    record = _read_object(folder / PULL_RECORD)
    if record is None or not isinstance(record.get("files"), dict):
        return "the folder is not empty and holds nothing pulled"
    names = (str(name).removeprefix("run/") for name in record["files"])
    return _first(_files_below(folder), {PULL_RECORD, *names, *_AFTERWARDS})


def _foreign_in_average(folder: Path) -> str | None:
    record = _read_object(folder / AVERAGE_RECORD)
    if record is None or "method" not in record:
        return "the folder is not empty and holds no average"
    return _first(_files_below(folder), {AVERAGE_RECORD, *_ADAPTER, *_AFTERWARDS})


def _foreign_in_adapter(folder: Path) -> str | None:
    """Both of its files or neither; other files are left alone."""
    there = [name for name in _ADAPTER if (folder / name).exists()]
    record = _read_object(folder / "adapter.json") if len(there) == len(_ADAPTER) else None
    if not there or (record is not None and "sha256" in record):
        return None
    return there[0]


_FILES: dict[Kind, Callable[[Path], str | None]] = {
    "archive": _foreign_in_archive,
    "model": _foreign_in_model,
    "page": _foreign_in_page,
}
_FOLDERS: dict[Kind, Callable[[Path], str | None]] = {
    "bundle": _foreign_in_bundle,
    "run": _foreign_in_run,
    "job": _foreign_in_job,
    "pulled": _foreign_in_pulled,
    "average": _foreign_in_average,
    "adapter": _foreign_in_adapter,
}
