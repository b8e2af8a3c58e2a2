"""What crosses the pipe between the controller and a box: frozen records, one reader and writer.

Both sides import this module, so a request or an answer cannot be written in one way and read in
another. Python 3.8 and the standard library only, hence a reader of its own: annotations are read
as the text they are, since a box's Python may know neither `list[str]` nor `int | None`. A field is
`str`, `int`, `float`, `bool`, a record, one of several records, `tuple[X, ...]`, `dict[str, X]`, or
one of these `| None`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from typing import Any

Record = TypeVar("Record")
STATES = ("absent", "running", "done", "failed", "stopped", "lost")
_LARGEST = 1 << 63  # of a number: no box has more of anything, and a float holds it


# What a box is asked to run ------------------------------------------------------------------


@dataclass(frozen=True)
class TrainOptions:
    """What `edgeladder train` is told on every box."""

    bundle_digest: str
    profile: str | None = None
    shots: int | None = None
    seed: int | None = None
    engine: str | None = None
    overrides: tuple[str, ...] = ()
    adapter_digest: str | None = None  # start from this pushed adapter, not from the bundle's


@dataclass(frozen=True)
class TrainTask:
    """`edgeladder train` on the box's own pictures."""

    program: str
    data: str
    options: TrainOptions
    device: str | None = None
    budget: str | None = None
    trusted_keys: tuple[str, ...] = ()  # publishers that the fleet pins


@dataclass(frozen=True)
class EvaluateTask:
    """`edgeladder evaluate` of a pushed adapter on the box's own test pictures."""

    program: str
    data: str
    bundle_digest: str
    adapter_digest: str
    trusted_keys: tuple[str, ...] = ()  # publishers that the fleet pins


@dataclass(frozen=True)
class InstallTask:
    """A virtual environment with edgeladder in it."""

    python: str
    version: str | None = None  # None: the newest there is
    extras: str = ""  # comma-separated
    wheelhouse_digest: str | None = None  # a pushed one; None: the box's registry
    offline: bool = True  # with a wheelhouse: use nothing else


# Requests ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeRequest:
    """What is this box?"""

    program: str
    data: str | None = None


@dataclass(frozen=True)
class HaveRequest:
    """Which blobs of a tree are missing?"""

    kind: str
    digest: str
    blobs: dict[str, int]  # sha256 -> bytes
    verify: bool = False  # hash again what is there


@dataclass(frozen=True)
class BlobPart:
    """The rest of one blob, from `offset` on."""

    sha256: str
    size: int
    offset: int


@dataclass(frozen=True)
class ReceiveRequest:
    """Take the bytes that follow."""

    blobs: tuple[BlobPart, ...]


@dataclass(frozen=True)
class AssembleRequest:
    """Build a tree from blobs."""

    kind: str
    digest: str
    files: dict[str, str]  # name -> sha256
    switch: bool = True  # make it the current one of its kind


@dataclass(frozen=True)
class PruneRequest:
    """Remove what nothing uses."""


@dataclass(frozen=True)
class StartRequest:
    """Start a job unless it runs or is done.

    `supersede` is the number of an attempt whose outcome is not wanted: it is begun afresh.
    """

    job: str
    task: TrainTask | EvaluateTask | InstallTask
    supersede: int | None = None


@dataclass(frozen=True)
class StatusRequest:
    """How does a job go, and what has its followed file gained since `offset`?"""

    job: str
    follow: str | None = None
    offset: int = 0


@dataclass(frozen=True)
class StopRequest:
    """End a job; it is killed after the grace."""

    job: str
    grace_seconds: float = 30.0


@dataclass(frozen=True)
class OutputsRequest:
    """Which of a job's files may leave the box?"""

    job: str


@dataclass(frozen=True)
class SendRequest:
    """One of them."""

    job: str
    name: str


@dataclass(frozen=True)
class Call:
    """One request and the folder that it is about."""

    root: str
    request: (
        ProbeRequest
        | HaveRequest
        | ReceiveRequest
        | AssembleRequest
        | PruneRequest
        | StartRequest
        | StatusRequest
        | StopRequest
        | OutputsRequest
        | SendRequest
    )  # noqa: E501  # the reader takes it as one line


if TYPE_CHECKING:  # not evaluated on a box, whose Python may know no `A | B`
    Task = TrainTask | EvaluateTask | InstallTask
    Request = (
        ProbeRequest
        | HaveRequest
        | ReceiveRequest
        | AssembleRequest
        | PruneRequest
        | StartRequest
        | StatusRequest
        | StopRequest
        | OutputsRequest
        | SendRequest
    )


# Answers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """What the box did not do, and why."""

    kind: str
    message: str
    remedy: str | None = None


@dataclass(frozen=True)
class ProbeAnswer:
    """What a box is."""

    model: str
    architecture: str
    system: str
    cores: int | None
    python: str
    venv: bool
    installed: dict[str, str]  # package -> version
    memory_bytes: int | None
    available_bytes: int | None
    swap_bytes: int | None
    fence: str  # the kernel limit that a run could have
    detach: str
    free_disk_bytes: int
    writable: bool
    data: bool | None  # whether there are pictures; None: not asked
    bundle: str | None  # digest of the current one
    clock: float


@dataclass(frozen=True)
class HaveAnswer:
    """What is missing, and how much of it has already arrived."""

    present: bool
    missing: dict[str, int]  # sha256 -> bytes that are there
    damaged: tuple[str, ...]
    free_bytes: int


@dataclass(frozen=True)
class ReceiveAnswer:
    """Blobs by what became of them."""

    stored: tuple[str, ...]
    rejected: tuple[str, ...]


@dataclass(frozen=True)
class AssembleAnswer:
    """Whether anything changed."""

    built: bool
    switched: bool


@dataclass(frozen=True)
class PruneAnswer:
    """What went."""

    removed: tuple[str, ...]
    freed_bytes: int


@dataclass(frozen=True)
class JobState:
    """What became of a job: one of `STATES`; lost: its runner died."""

    state: str
    exit_code: int | None = None
    attempts: int = 0
    via: str | None = None
    started: float | None = None  # seconds since the epoch

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"state is {self.state[:50]!r}, should be one of {', '.join(STATES)}")


@dataclass(frozen=True)
class StartAnswer:
    """The job, and whether this call started it."""

    job: JobState
    started_now: bool


@dataclass(frozen=True)
class StatusAnswer:
    """The job, and whole lines of its followed file up to `offset`."""

    job: JobState
    offset: int = 0
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class StopAnswer:
    """The job, and how it ended."""

    job: JobState
    stopped_now: bool
    killed: bool = False


@dataclass(frozen=True)
class FileRecord:
    """One file of a job."""

    size: int
    sha256: str


@dataclass(frozen=True)
class OutputsAnswer:
    """Files that may leave, and those that hold pictures or features and stay."""

    job: JobState
    files: dict[str, FileRecord]
    kept: tuple[str, ...]


@dataclass(frozen=True)
class SendAnswer:
    """So many bytes follow."""

    size: int


# On the box's disk ---------------------------------------------------------------------------


@dataclass(frozen=True)
class JobFile:
    """A job's job.json."""

    command: tuple[str, ...]  # with `{root}` and `{job}` for the box's folders
    attempts: int = 0
    started: float = 0.0
    via: str = ""


_RECORDS = {
    found.__name__: found
    for found in list(globals().values())
    if isinstance(found, type) and dataclasses.is_dataclass(found)
}
_PLAIN = {"str": (str,), "int": (int,), "float": (float, int), "bool": (bool,)}


def to_json(record: object) -> object:
    """Plain JSON values; a record says in `is` which one it is."""
    if dataclasses.is_dataclass(record):
        values = {f.name: to_json(getattr(record, f.name)) for f in dataclasses.fields(record)}
        return {"is": type(record).__name__, **values}
    if isinstance(record, dict):
        return {key: to_json(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_json(value) for value in record]
    return record


def from_json(kind: type[Record], values: object) -> Record:
    """The record of plain values; `from_json(type(r), to_json(r)) == r`.

    Raises:
        ValueError: another record, or a key that is unknown, missing or of another type.
    """
    found: Record = _take(kind.__name__, values, kind.__name__)
    return found


def _take(kind: str, value: object, path: str) -> Any:
    choices = kind.split(" | ")
    if value is None and "None" in choices:
        return None
    records = [choice for choice in choices if choice in _RECORDS]
    if records:
        if not isinstance(value, dict):
            raise ValueError(f"{path} is no object")
        return _record(records, value, path)
    base = choices[0]
    if base.startswith("tuple["):
        if not isinstance(value, list):
            raise ValueError(f"{path} is no list")
        inner = base[len("tuple[") : -len(", ...]")]
        return tuple(_take(inner, item, f"{path}[{n}]") for n, item in enumerate(value))
    if base.startswith("dict["):
        if not isinstance(value, dict):
            raise ValueError(f"{path} is no object")
        inner = base[len("dict[str, ") : -1]
        return {str(key): _take(inner, item, f"{path}.{key}") for key, item in value.items()}
    if not isinstance(value, _PLAIN[base]) or (isinstance(value, bool) and base != "bool"):
        raise ValueError(f"{path} is {type(value).__name__}, should be {kind}")
    if isinstance(value, (int, float)) and not -_LARGEST < value < _LARGEST:  # NaN is not either
        raise ValueError(f"{path} is no number that can be")
    return value


def _record(choices: list[str], values: dict[object, object], path: str) -> Any:
    name = values.get("is", choices[0])
    if name not in choices:
        raise ValueError(f"{path} is {name!r}, should be {' or '.join(choices)}")
    fields = {item.name: item for item in dataclasses.fields(_RECORDS[str(name)])}
    unknown = [str(key) for key in values if key not in fields and key != "is"]
    if unknown:
        raise ValueError(f"{path} has an unknown key {unknown[0]!r}")
    found = {
        str(key): _take(str(fields[str(key)].type), value, f"{path}.{key}")
        for key, value in values.items()
        if key != "is"
    }
    try:
        return _RECORDS[str(name)](**found)
    except TypeError as error:  # a key without a default is missing
        raise ValueError(f"{path}: {error}") from None
