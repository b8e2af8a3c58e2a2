"""Collect what jobs produced: adapters, metrics and reports, each verified; nothing else.

The agent sends no file outside `PULLABLE`. Since a box may be broken or hostile, what arrives is
checked again here: size, hash, JSON where JSON is due, and an adapter's tensors by name, type and
shape against those of the bundle, so that nothing can ride along in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
from pathlib import Path

from edgeladder.core import disk
from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.files import building, read_json, sha256_file
from edgeladder.core.manifest import Manifest
from edgeladder.core.prompt_tensors import PACKED
from edgeladder.core.tensors import read_header
from edgeladder.fleet.box.jobs import PULLABLE, shows_pictures
from edgeladder.fleet.box.records import (
    FileRecord,
    OutputsAnswer,
    OutputsRequest,
    SendAnswer,
    SendRequest,
)
from edgeladder.fleet.outcomes import HostError, HostResult
from edgeladder.fleet.pulled import PullRecord, host_folder
from edgeladder.fleet.transport import Box
from edgeladder.report import write_report

ADAPTER_LIMIT_BYTES = 1 << 30
TEXT_LIMIT_BYTES = 64 << 20
TORN_LINE_CHARACTERS = 4096
CONFIG, METRICS = "config.yaml", "metrics.jsonl"
_PAGE_LIMIT_BYTES = 4 << 20


async def pull(box: Box, job: str, out: Path, *, manifest: Manifest | None = None) -> HostResult:
    """Pull one host's files of a job into `OUT/JOB/hosts/HOST`, whole or not at all.

    Args:
        manifest: of the bundle, against which an adapter is checked.

    Raises:
        HostError: there is no such job, a file is not what the box announced, or not what it
            should be.
    """
    answer = await box.call(OutputsRequest(job), OutputsAnswer, timeout_seconds=120)
    state = answer.job
    if state.state == "absent":
        raise HostError(f"no job {job} here", kind="refused", where=box.host.name)
    offered = {name: answer.files[name] for name in PULLABLE if name in answer.files}
    folder = host_folder(out, job, box.host.name)
    kept = tuple(name for name in answer.kept if name in PULLABLE)
    record = PullRecord(state.state, state.exit_code, offered, state.attempts, kept)
    facts: dict[str, object] = {"job": job, "job_state": state.state, "files": len(offered)}
    if kept:
        facts["kept_there"] = list(kept)
    if PullRecord.read(folder) == record and _intact(folder, offered):
        return HostResult(box.host.name, "unchanged", facts)
    before = box.received_bytes
    with building(folder, "pulled") as temporary:
        for name, announced in offered.items():
            target = temporary / name.removeprefix("run/")
            await _fetch(box, SendRequest(job, name), announced, target)
            _check(target, manifest, box.host.name)
        await asyncio.to_thread(_write_page, temporary, folder)
        record.write(temporary)
    facts.update(received_bytes=box.received_bytes - before)
    return HostResult(box.host.name, "done", facts)


def _intact(folder: Path, offered: dict[str, FileRecord]) -> bool:
    paths = {folder / name.removeprefix("run/"): found for name, found in offered.items()}
    return all(p.is_file() and sha256_file(p) == found.sha256 for p, found in paths.items())


async def _fetch(box: Box, request: SendRequest, announced: FileRecord, target: Path) -> None:
    name, size = request.name, announced.size
    limit = ADAPTER_LIMIT_BYTES if name.endswith(".safetensors") else TEXT_LIMIT_BYTES
    if not 0 <= size <= limit:
        raise HostError(
            f"{name} is {size} bytes, at most {limit} are taken",
            kind="integrity",
            where=box.host.name,
        )
    digest = hashlib.sha256()
    received = 0
    with disk.create(target) as stream:

        def sink(block: bytes) -> None:
            nonlocal received
            received += len(block)
            if received > size:
                raise HostError(
                    f"{name} is longer than announced", kind="integrity", where=box.host.name
                )
            digest.update(block)
            stream.write(block)

        await box.call(request, SendAnswer, sink=sink)
    if received != size or digest.hexdigest() != announced.sha256:
        raise HostError(
            f"{name} changed while it was pulled, or on its way",
            kind="integrity",
            where=box.host.name,
            remedy="pull again when the job has ended",
        )


def _write_page(pulled: Path, place: Path) -> None:
    """The run's page, written here from what was pulled; none where that is no run.

    A box's own page could hold scripts, or say what its records do not.
    """
    inputs = [pulled / name for name in (CONFIG, METRICS)]
    if any(path.is_file() and path.stat().st_size > _PAGE_LIMIT_BYTES for path in inputs):
        return  # `edgeladder report --run` makes one, with the time and memory that it takes
    if inputs[0].is_file() and b"*" in inputs[0].read_bytes():
        return  # an alias of YAML: few bytes that may stand for very many
    with contextlib.suppress(EdgeLadderError):
        write_report(pulled, title=place.name)


def _check(path: Path, manifest: Manifest | None, host: str) -> None:
    """Raise where a pulled file is not what its name says."""
    try:
        with open(path, "rb") as stream:
            if shows_pictures(stream, path.name):
                raise ValueError("it holds pictures or their features")
        if path.suffix == ".json":
            if path.stat().st_size and not isinstance(read_json(path), dict):
                raise ValueError("not a JSON object")
        elif path.suffix == ".jsonl":
            with open(path, encoding="utf-8") as lines:
                for line in lines:
                    _check_line(line)
        elif path.suffix == ".safetensors":
            check_adapter(path, manifest)
    except (ValueError, RecursionError) as error:
        raise HostError(
            f"{path.name} is not what it should be: {error}", kind="integrity", where=host
        ) from None


def _check_line(line: str) -> None:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        if len(line) > TORN_LINE_CHARACTERS:  # less is what a power cut leaves of a record
            raise


def check_adapter(path: Path, manifest: Manifest | None) -> None:
    """Compare an adapter's tensors with those the bundle's ladder has.

    Raises:
        ValueError: unreadable, or a tensor that is missing, unknown or of another shape.
    """
    header = read_header(path).entries
    if manifest is None:
        return
    ladder = manifest.ladder
    expected = {record.name: list(record.shape) for record in ladder.parameters}
    optional = {record.name: list(record.shape) for record in ladder.buffers}
    known = {**expected, **optional}
    stored = {name.removeprefix(PACKED) for name in header if name.startswith(PACKED)}
    for name, tensor in header.items():
        whole = known.get(name.removeprefix(PACKED)) if name.startswith(PACKED) else None
        if whole is not None:  # quantized or condensed: never more than the ladder takes
            if tensor.size * tensor.dtype.itemsize > 4 * math.prod(whole):
                raise ValueError(f"tensor {name!r} is larger than {whole} single-precision values")
            continue
        shape = known.get(name)
        if shape is None:
            raise ValueError(f"tensor {name!r} is not of this bundle's ladder")
        if list(tensor.shape) != shape:
            raise ValueError(f"tensor {name!r} is {list(tensor.shape)}, should be {shape}")
        if name in expected and not tensor.is_float:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}, should be of floats")
    missing = sorted(set(expected) - set(header) - stored)
    if missing:
        raise ValueError(f"tensor {missing[0]!r} is missing")
