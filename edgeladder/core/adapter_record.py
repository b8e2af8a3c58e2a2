"""`adapter.json`: what an adapter is, in words that a person can read.

It holds the hash of the tensors' file, and a digest of its own: SHA-256 over all its other values
as JSON with sorted keys. Reversed classes would give reversed answers, with weights that are whole.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from edgeladder.core.bounds import Ge, Gt
from edgeladder.core.errors import IntegrityError
from edgeladder.core.files import read_json, sha256_bytes, write_text
from edgeladder.core.printable import json_text
from edgeladder.core.prompt_tensors import PackedPrompts, PromptTensors
from edgeladder.core.records import from_json, to_json

SCHEMA_VERSION = 2
_UNHASHED = 1  # written by edgeladder 0.1 and 0.2, without a digest, some without `sha256`
_DIGEST = "digest"
RECORD = "adapter.json"
KNOWN = "known:"  # before the names of the arrays that known pictures are near to
AGAIN = "copy both files again from the run that wrote them"


@dataclass(frozen=True, kw_only=True)
class GdaRecord:
    """Gaussian discriminant analysis; its matrix and bias are arrays."""

    kind: Literal["gda"] = "gda"
    weight: float
    prior: float
    reads: tuple[int, ...] = (-1,)  # which features


@dataclass(frozen=True, kw_only=True)
class KernelRecord:
    """A kernel ridge on the support set; support, centres and solution are arrays."""

    kind: Literal["kernel", "proker"]
    weights: tuple[float, ...]  # per tap
    scales: tuple[float, ...]  # per tap
    ridge: float
    temperature: float
    prior: float
    loss: float | None = None  # held out; None: the settings were fixed
    base: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BlendRecord:
    """The mean of several heads."""

    kind: Literal["blend"] = "blend"
    heads: tuple[GdaRecord | KernelRecord, ...]


HeadRecord = GdaRecord | KernelRecord | BlendRecord


@dataclass(frozen=True)
class StoredHead:
    """A closed-form head and what it counts; `eta` and `ladder` in the file."""

    rule: HeadRecord
    head_weight: float = 1.0
    ladder_weight: float = 1.0  # 0: the head alone


@dataclass(frozen=True, kw_only=True)
class CalibrationRecord:
    """What the logits are divided by before softmax (temperature scaling, arXiv:1706.04599)."""

    temperature: Annotated[float, Gt(0)]
    pictures: Annotated[int, Ge(0)] = 0  # held-out ones that had a say; 0: the fixed one alone
    # of the ladder's own logits, for names that the head does not know; 1 in older adapters
    ladder_temperature: Annotated[float, Gt(0)] = 1.0


@dataclass(frozen=True, kw_only=True)
class KnownRecord:
    """When a picture is of a known class; its support rows are arrays.

    The score is the mean cosine to the nearest support pictures, -1 to 1.
    """

    threshold: float  # below it a picture is unknown
    neighbours: Annotated[int, Ge(1)] = 3
    reads: tuple[int, ...] = (-2, -1)  # which features
    pictures: Annotated[int, Ge(0)] = 0  # held-out scores that chose the threshold; 0: none did


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """All that `adapter.json` says."""

    schema_version: int = SCHEMA_VERSION
    bundle_digest: str
    ladder_digest: str  # SHA-256 of ladder/forward.onnx
    model: str = ""
    profile: dict[str, Any] = field(default_factory=dict)  # as the run was asked, for people
    classes: list[str]  # folder names, in label order
    class_names: list[str] = field(default_factory=list)  # what the text tower reads
    templates: list[str] = field(default_factory=list)
    text: dict[str, Any] = field(default_factory=dict)  # `aliases` per class
    created: str = ""
    prompts: PackedPrompts | None = None  # how they are stored; None: as they are
    prompt_tensors: PromptTensors = PromptTensors()  # which of the parameters are prompts
    head: StoredHead | None = None
    calibration: CalibrationRecord | None = None  # None: of a version that had none
    known: KnownRecord | None = None  # None: of a version that had none
    sha256: str = ""  # of the tensors' file; empty only where an early version left it out

    @property
    def is_unhashed(self) -> bool:
        """Whether it was read from a file without a digest, which may have changed unnoticed."""
        return self.schema_version == _UNHASHED


def adapter_record_text(record: AdapterRecord) -> str:
    """What `adapter.json` holds, in the newest version."""
    values = to_json(replace(record, head=None, schema_version=SCHEMA_VERSION))
    if record.head is not None:
        head = record.head
        values["head"] = {
            **to_json(head.rule),
            "eta": head.head_weight,
            "ladder": head.ladder_weight,
        }
    return json_text({**values, _DIGEST: _digest(values)}) + "\n"


def write_adapter_record(folder: Path, record: AdapterRecord) -> None:
    """Write `adapter.json` atomically. Raises StorageError."""
    write_text(folder / RECORD, adapter_record_text(record))


def _digest(values: dict[str, Any]) -> str:
    return sha256_bytes(json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


def read_adapter_record(folder: Path) -> AdapterRecord:
    """What `write_adapter_record` wrote, or an earlier version of it.

    Raises:
        IntegrityError: not readable, of another version, or not what was written.
    """
    try:
        values = dict(read_json(folder / RECORD))
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        # not its repr: a UnicodeDecodeError's has the whole file in it
        what = f"{type(error).__name__}: {error}"
        raise IntegrityError(
            f"unreadable {RECORD}: {what}", where=str(folder), remedy=AGAIN
        ) from error
    if version not in (_UNHASHED, SCHEMA_VERSION):
        raise IntegrityError(
            f"adapter version {version}, this edgeladder reads version {SCHEMA_VERSION}",
            where=str(folder),
            remedy="use the edgeladder version that trained it, or train again",
        )
    digest = values.pop(_DIGEST, None)
    # a version without digests has none: a newer file that calls itself old is no way around it
    if digest != (_digest(values) if version == SCHEMA_VERSION else None):
        raise IntegrityError(
            f"{RECORD} is not as it was written: its digest differs",
            where=str(folder),
            remedy=AGAIN,
        )
    values = {key: value for key, value in values.items() if value is not None}
    if isinstance(values.get("model"), dict):  # before version 0.1
        values["model"] = values["model"].get("name", "")
    head = values.pop("head", None)
    try:
        record = from_json(AdapterRecord, values, where=str(folder / RECORD), others_keys=True)
        record = replace(record, head=_stored_head(head))
    except (IntegrityError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(
            f"unreadable {RECORD}: {error}", where=str(folder), remedy=AGAIN
        ) from error
    if version == SCHEMA_VERSION and not record.sha256:
        raise IntegrityError(
            f"{RECORD} lacks the hash of the weights", where=str(folder), remedy=AGAIN
        )
    return record if record.class_names else replace(record, class_names=record.classes)


def _stored_head(values: dict[str, Any] | None) -> StoredHead | None:
    if not values or values.get("kind", "none") == "none":
        return None
    weights = float(values.get("eta", 1.0)), float(values.get("ladder", 1.0))
    rule = {key: value for key, value in values.items() if key not in ("eta", "ladder")}
    kinds: dict[Any, type[GdaRecord] | type[KernelRecord] | type[BlendRecord]]
    kinds = {"gda": GdaRecord, "blend": BlendRecord}
    return StoredHead(from_json(kinds.get(rule["kind"], KernelRecord), rule), *weights)
