"""What was pulled of a job, on the controller's disk: one reader and one writer of each file.

OUT/JOB/hosts/HOST/pull.json      what was pulled, and the job's state
OUT/JOB/hosts/HOST/result.json    what the box's command printed: taken for numbers and text
OUT/JOB/failures.json             host -> why nothing came of it the last time it was asked
OUT/JOB/refused.json              host -> why its adapter is in no average
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgeladder.core import disk
from edgeladder.core.files import read_json, write_json
from edgeladder.core.ownership import PULL_RECORD, require_ours
from edgeladder.core.records import read_record, to_json
from edgeladder.fleet.averaging import MOST_PICTURES
from edgeladder.fleet.box.records import FileRecord
from edgeladder.fleet.outcomes import FleetOutcome

RECORD = PULL_RECORD
FAILURES = "failures.json"
REFUSED = "refused.json"
RESULT = "result.json"
_LARGEST = 2.0**63
_LONGEST_TEXT = 2000


@dataclass(frozen=True)
class PullRecord:
    """The state of a job when its files were pulled, and the files by name."""

    state: str
    exit_code: int | None = None
    files: dict[str, FileRecord] = field(default_factory=dict)
    attempts: int = 0
    kept: tuple[str, ...] = ()  # what stayed on the box: pictures in reports, heads' features

    def write(self, folder: Path) -> None:
        """Into a host's folder."""
        write_json(folder / RECORD, to_json(self))

    @classmethod
    def read(cls, folder: Path) -> PullRecord | None:
        """Of a host's folder, or None where nothing was pulled."""
        path = folder / RECORD
        if not path.is_file():
            return None
        return read_record(cls, path, others_keys=True)


@dataclass(frozen=True)
class PulledResult:
    """The numbers that the fleet reads of a result.json; None: the box did not say so."""

    tuned: float | None = None
    zero_shot: float | None = None
    train_count: float | None = None  # pictures it was trained on
    unlabelled: int | None = None  # further pictures, without a label, that taught
    test_count: int | None = None  # pictures it was evaluated on; never more than a box can have
    steps: float | None = None
    budget_bytes: float | None = None
    peak_bytes: float | None = None  # of all phases
    enforcement: str = ""
    error: str | None = None

    @classmethod
    def read(cls, folder: Path) -> PulledResult:
        """Of a host's folder; what is of another kind than it should be is left out."""
        path = folder / RESULT
        try:
            values = _object(read_json(path) if path.is_file() else {})
        except ValueError:
            values = {}
        accuracy, memory = _object(values.get("accuracy")), _object(values.get("memory"))
        phases = _object(memory.get("phases")).values()
        peaks = [_number(_object(phase).get("measured_peak_bytes")) for phase in phases]
        message = _object(values.get("error")).get("message")
        return cls(
            tuned=_share(accuracy.get("tuned") if accuracy else values.get("accuracy")),
            zero_shot=_share(accuracy.get("zero_shot", values.get("zero_shot_accuracy"))),
            train_count=_number(_object(values.get("counts")).get("train")),
            unlabelled=_count(_object(values.get("unlabelled")).get("used")),
            test_count=_count(accuracy.get("count") if accuracy else values.get("count")),
            steps=_number(values.get("steps")),
            budget_bytes=_number(memory.get("budget_bytes")),
            peak_bytes=max((peak for peak in peaks if peak is not None), default=None),
            enforcement=str(memory.get("enforcement") or "")[:_LONGEST_TEXT],
            error=str(message)[:_LONGEST_TEXT] if message else None,
        )


def _object(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < _LARGEST else None  # NaN is never less


def _count(value: object) -> int | None:
    number = _number(value)
    return int(number) if number is not None and 0 <= number <= MOST_PICTURES else None


def _share(value: object) -> float | None:
    number = _number(value)
    return number if number is not None and 0.0 <= number <= 1.0 else None


def host_folder(out: Path, job: str, host: str) -> Path:
    """Where a host's files of a job lie on the controller."""
    return out / job / "hosts" / host


def require_own_folders(out: Path, job: str, hosts: Iterable[str]) -> None:
    """Refuse a folder for a job's files in which something else lies.

    Raises:
        ConfigError: `OUT/JOB`, or a host's folder in it, holds what was not pulled.
    """
    require_ours(out / job, "job")
    for host in hosts:
        require_ours(host_folder(out, job, host), "pulled")


def reasons(out: Path, job: str, name: str) -> dict[str, str]:
    """Host -> why, of `FAILURES` or `REFUSED` of a job."""
    path = out / job / name
    try:
        said = read_json(path) if path.is_file() else {}
    except ValueError:
        said = {}  # a note for people, written anew at the next pull
    return {str(host): str(why) for host, why in _object(said).items()}


def remember_failures(out: Path, job: str, outcome: FleetOutcome) -> None:
    """Write down which hosts failed; those that did not are struck off."""
    known = reasons(out, job, FAILURES)
    for result in outcome.results:
        known.pop(result.host, None)
        if result.state == "failed" and result.error:
            known[result.host] = str(result.error["message"])
    disk.make_folders(out / job)
    write_json(out / job / FAILURES, known)
