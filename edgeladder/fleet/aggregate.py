"""Federated averaging of adapters: plain, trimmed or median, with what does not belong refused.

    mean     weighted by pictures: FedAvg, McMahan et al. 2017, arXiv:1602.05629, algorithm 1
    trimmed  coordinate-wise trimmed mean; median: coordinate-wise median; both withstand a
             minority of arbitrary boxes: Yin et al. 2018, arXiv:1803.01498, definitions 1 and 2

Adapters are read a block at a time from all files, so memory depends on the size of one adapter
and not on the number of boxes.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from edgeladder.core.adapter_record import (
    AdapterRecord,
    read_adapter_record,
    write_adapter_record,
)
from edgeladder.core.errors import ConfigError, DataError, IntegrityError
from edgeladder.core.files import building, read_json, sha256_file, write_json
from edgeladder.core.ownership import require_ours
from edgeladder.core.records import compact_json, from_json, to_json
from edgeladder.core.tensors import TensorEntry, read_header, read_values, write_tensors

ADAPTER = "adapter.safetensors"
RESULT = "aggregate.json"
Method = Literal["mean", "trimmed", "median"]
# For trainings whose adapters are to be averaged: a closed-form head is fitted to one box's own
# features, and cannot be. The whole section, since a weight without a head is refused.
HEADLESS = "head={kind: none}"
_BLOCK_VALUES = 1 << 20  # float64 values held at a time, over all boxes


@dataclass(frozen=True)
class Contribution:
    """One box's adapter folder and the number of pictures it was trained on."""

    name: str
    folder: Path
    pictures: float = 1.0


@dataclass(frozen=True)
class Averaging:
    """How adapters become one."""

    method: Method = "mean"  # only `mean` weighs by pictures
    # share of values dropped at each end by `trimmed`; at least one from three boxes on
    trim: float = 0.2
    # an adapter further from the start than `bound` times the median distance is refused, from
    # three boxes on (of two, none can be told to be the odd one)
    bound: float = 10.0

    def __post_init__(self) -> None:
        if not 0 <= self.trim < 0.5:
            raise ConfigError(
                f"--trim {self.trim} is not in [0, 0.5)", remedy="drop at most each end's half"
            )
        if not self.bound > 1:
            raise ConfigError(f"--bound {self.bound} is not above 1", remedy="10 is a good bound")


@dataclass(frozen=True)
class Start:
    """What all boxes began from, to measure how far each went."""

    file: Path | None = None  # safetensors; None: distances from their median
    zeros: Collection[str] = ()  # tensors that began at zero where the file leaves them out


BY_PICTURES = Averaging()
FROM_MEDIAN = Start()


@dataclass(frozen=True)
class AggregateResult:
    """Who is in the average and who is not: aggregate.json."""

    method: Method
    weights: dict[str, float] = field(default_factory=dict)  # sum to 1
    refused: dict[str, str] = field(default_factory=dict)  # name -> why
    distances: dict[str, float] = field(default_factory=dict)  # L2, from the start or the median

    @classmethod
    def read(cls, folder: Path) -> AggregateResult | None:
        """Of an average's folder, or None where there is no average."""
        path = folder / RESULT
        if not path.is_file():
            return None
        return from_json(cls, read_json(path), where=str(path), others_keys=True)


@dataclass(frozen=True)
class _Member:
    """An adapter that may be averaged, opened."""

    contribution: Contribution
    metadata: AdapterRecord
    tensors: dict[str, TensorEntry]

    @property
    def name(self) -> str:
        return self.contribution.name

    def values(self, tensor: str, first: int = 0, last: int | None = None) -> np.ndarray:
        path = self.contribution.folder / ADAPTER
        return read_values(path, self.tensors[tensor], first, last)


class TooFew(DataError):
    """Not enough adapters remain for an average."""

    def __init__(self, message: str, result: AggregateResult, **more: str):
        super().__init__(message, where=more.get("where"), remedy=more.get("remedy"))
        self.result = result


def aggregate(
    contributions: list[Contribution],
    out: Path,
    averaging: Averaging = BY_PICTURES,
    *,
    start: Start = FROM_MEDIAN,
    bundle_digest: str | None = None,
    minimum: int = 1,
) -> AggregateResult:
    """Average adapters into the folder `out` (adapter.safetensors, adapter.json, aggregate.json).

    Args:
        contributions: folders with `adapter.safetensors` and `adapter.json`.
        averaging: how.
        start: what the distances are measured from.
        bundle_digest: the bundle the adapters must be of; None: they must agree.
        minimum: adapters that must remain for an average to be written.

    Raises:
        ConfigError: nothing to average, or a box is there twice.
        IntegrityError: adapters of different bundles or classes and no `bundle_digest` to tell
            which are right.
        TooFew: fewer than `minimum` adapters remain.
    """
    if not contributions:
        raise ConfigError("no adapters to average", remedy="`edgeladder fleet pull` collects them")
    twice = [name for name, n in Counter(c.name for c in contributions).items() if n > 1]
    if twice:
        raise ConfigError(f"{twice[0]!r} is there twice", remedy="name every box once")
    require_ours(out, "average")
    result = AggregateResult(averaging.method)
    members = _open(contributions, result, bundle_digest)
    if members:
        result.distances.update(_distances(members, start))
        members = _refuse_far(members, result, averaging.bound)
    if len(members) < max(1, minimum):
        why = "; ".join(f"{name}: {reason}" for name, reason in result.refused.items())
        raise TooFew(
            f"{len(members)} adapters are left, {max(1, minimum)} are needed; refused: {why}",
            result,
            where=str(out),
            remedy="look at what was refused, then train again",
        )
    by_pictures = averaging.method == "mean"
    weights = np.array([m.contribution.pictures if by_pictures else 1.0 for m in members])
    weights = weights / weights.sum()
    result.weights.update({m.name: float(w) for m, w in zip(members, weights, strict=True)})
    _write(out, members, weights, averaging, result)
    return result


def _write(
    out: Path,
    members: list[_Member],
    weights: np.ndarray,
    averaging: Averaging,
    result: AggregateResult,
) -> None:
    with building(out, "average") as folder:
        names = members[0].tensors
        tensors = {name: _combine(members, name, weights, averaging) for name in names}
        write_tensors(folder / ADAPTER, tensors)
        record = dataclasses.replace(
            members[0].metadata,
            head=None,  # a closed-form head is fitted to one box's own features
            sha256=sha256_file(folder / ADAPTER),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )
        write_adapter_record(folder, record)
        write_json(folder / RESULT, to_json(result))


def _open(
    contributions: list[Contribution], result: AggregateResult, bundle_digest: str | None
) -> list[_Member]:
    """The adapters that belong together; the others are refused, each with its reason."""
    found = {c.name: _read_metadata(c, result) for c in contributions}
    known = {name: record for name, record in found.items() if record is not None}
    _refuse_mixed(known, result, bundle_digest)
    kept = [c for c in contributions if c.name not in result.refused]
    members = [_Member(c, known[c.name], _read_tensors(c, result)) for c in kept]
    members = [member for member in members if member.name not in result.refused]
    return _refuse_odd_tensors(members, result)


def _read_metadata(contribution: Contribution, result: AggregateResult) -> AdapterRecord | None:
    pictures = contribution.pictures
    if not (isinstance(pictures, (int, float)) and np.isfinite(pictures) and pictures > 0):
        result.refused[contribution.name] = f"{pictures} is no number of pictures"
        return None
    try:
        return read_adapter_record(contribution.folder)
    except FileNotFoundError:
        result.refused[contribution.name] = "no adapter there"
    except IntegrityError as error:
        result.refused[contribution.name] = error.message
    return None


def _identity(record: AdapterRecord) -> str:
    return compact_json([record.bundle_digest, record.ladder_digest, record.model, record.classes])


def _refuse_mixed(
    known: dict[str, AdapterRecord], result: AggregateResult, bundle_digest: str | None
) -> None:
    """Refuse adapters of another bundle, and of other classes than most have."""
    if bundle_digest is not None:
        others = [name for name, found in known.items() if found.bundle_digest != bundle_digest]
        result.refused.update({name: "of another bundle" for name in others})
        known = {name: found for name, found in known.items() if name not in others}
    kinds = Counter(_identity(found) for found in known.values())
    if len(kinds) < 2:
        return
    (common, count), (_, second) = kinds.most_common(2)
    differing = [name for name, found in known.items() if _identity(found) != common]
    if bundle_digest is None or count == second:
        raise IntegrityError(
            f"mixed bundles or classes: {', '.join(differing)} differ from the rest",
            remedy="aggregate only runs of one bundle and one list of classes (a classes.yaml "
            "pushed to every box gives them one)",
        )
    result.refused.update({name: "of other classes" for name in differing})


def _read_tensors(contribution: Contribution, result: AggregateResult) -> dict[str, TensorEntry]:
    path = contribution.folder / ADAPTER
    try:
        header = read_header(path).entries
        for name, tensor in header.items():
            if tensor.is_float:
                for first, last in _blocks(tensor, 1):
                    if not np.isfinite(read_values(path, tensor, first, last)).all():
                        raise ValueError(f"{name} holds NaN or infinity")
    except (OSError, ValueError) as error:
        result.refused[contribution.name] = str(error)
        return {}
    return header


def _refuse_odd_tensors(members: list[_Member], result: AggregateResult) -> list[_Member]:
    """Refuse adapters whose tensors or integer values differ from the commonest."""

    def signature(member: _Member) -> str:
        tensors = sorted(member.tensors.items())
        parts = [(name, str(tensor.dtype), tensor.shape) for name, tensor in tensors]
        exact = [member.values(name).tobytes() for name, tensor in tensors if not tensor.is_float]
        return str(parts) + hashlib.sha256(b"".join(exact)).hexdigest()

    signatures = {member.name: signature(member) for member in members}
    common = Counter(signatures.values()).most_common(1)
    for name, found in signatures.items():
        if found != common[0][0]:
            result.refused[name] = (
                "its tensors differ from the others' in name, shape, mask or quantized prompts, "
                "which cannot be averaged"
            )
    return [member for member in members if member.name not in result.refused]


def _blocks(tensor: TensorEntry, boxes: int) -> list[tuple[int, int]]:
    step = max(1, _BLOCK_VALUES // max(1, boxes))
    return [(first, min(first + step, tensor.size)) for first in range(0, tensor.size, step)]


def _stack(members: list[_Member], name: str, first: int, last: int) -> np.ndarray:
    """One block of one tensor from every box: (boxes, last - first) float64."""
    return np.stack([m.values(name, first, last) for m in members]).astype(np.float64)


def _distances(members: list[_Member], start: Start) -> dict[str, float]:
    squares = np.zeros(len(members))
    origin = read_header(start.file).entries if start.file is not None else {}
    for name, tensor in members[0].tensors.items():
        if not tensor.is_float:
            continue
        known = origin.get(name)
        for first, last in _blocks(tensor, len(members)):
            block = _stack(members, name, first, last)
            if start.file is not None and known is not None and known.shape == tensor.shape:
                centre = read_values(start.file, known, first, last).astype(np.float64)
            elif known is None and name in start.zeros:
                centre = np.zeros(())
            else:
                centre = np.median(block, axis=0)
            squares += ((block - centre) ** 2).sum(axis=1)
    return {m.name: float(d) for m, d in zip(members, np.sqrt(squares), strict=True)}


def _refuse_far(members: list[_Member], result: AggregateResult, bound: float) -> list[_Member]:
    middle = float(np.median([result.distances[m.name] for m in members]))
    for member in members if len(members) >= 3 and middle > 0 else []:
        distance = result.distances[member.name]
        if distance > bound * middle:
            result.refused[member.name] = (
                f"{distance / middle:.3g} times as far off as the median box, bound {bound:g}"
            )
    return [member for member in members if member.name not in result.refused]


def _combine(
    members: list[_Member], name: str, weights: np.ndarray, averaging: Averaging
) -> np.ndarray:
    """One averaged tensor; integers and masks are the same everywhere and stay."""
    tensor = members[0].tensors[name]
    if not tensor.is_float:
        return members[0].values(name).reshape(tensor.shape)
    averaged = np.empty(tensor.size, dtype=tensor.dtype)
    for first, last in _blocks(tensor, len(members)):
        block = _stack(members, name, first, last)  # (boxes, n)
        averaged[first:last] = combine(block, weights, averaging.method, averaging.trim)
    return averaged.reshape(tensor.shape)


def combine(block: np.ndarray, weights: np.ndarray, method: Method, trim: float) -> np.ndarray:
    """Average rows (boxes, n) into (n,).

    The weighted sum goes box by box in their order, so that the result does not depend on how a
    tensor was cut into blocks.
    """
    boxes = len(block)
    if method == "mean":
        total = np.zeros(block.shape[1])
        for row, weight in zip(block, weights, strict=True):
            total += weight * row
        return total
    if method == "median":
        return np.asarray(np.median(block, axis=0))
    cut = int(trim * boxes)
    if boxes >= 3 and trim > 0:
        cut = max(1, cut)
    return np.asarray(np.sort(block, axis=0)[cut : boxes - cut].mean(axis=0))
