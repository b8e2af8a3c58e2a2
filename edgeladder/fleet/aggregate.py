"""Federated averaging of adapters: plain, trimmed or median, with what does not belong refused.

    mean     weighted by pictures: FedAvg, McMahan et al. 2017, arXiv:1602.05629, algorithm 1;
             no box weighs more than half, since its count is its own word
    trimmed  coordinate-wise trimmed mean; median: coordinate-wise median; both withstand a
             minority of arbitrary boxes: Yin et al. 2018, arXiv:1803.01498, definitions 1 and 2

Adapters are read a block at a time from all files, so memory depends on the size of one adapter
and not on the number of boxes.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections import Counter
from pathlib import Path

import numpy as np

from edgeladder.core.adapter_record import CalibrationRecord, write_adapter_record
from edgeladder.core.errors import ConfigError, DataError
from edgeladder.core.files import building, sha256_file, write_json
from edgeladder.core.ownership import require_ours
from edgeladder.core.records import to_json
from edgeladder.core.tensors import write_tensors
from edgeladder.fleet.admission import Check, Member, admit, blocks, stack
from edgeladder.fleet.averaging import (
    ADAPTER,
    BY_PICTURES,
    FROM_MEDIAN,
    RESULT,
    AggregateResult,
    Averaging,
    Contribution,
    Method,
    Start,
)

_MOST_WEIGHT = 0.5  # of one box, from two boxes on
_TEMPERATURES_DIFFER = 10.0  # times


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
    check: Check = lambda path: None,
) -> AggregateResult:
    """Average adapters into the folder `out` (adapter.safetensors, adapter.json, aggregate.json).

    Args:
        contributions: folders with `adapter.safetensors` and `adapter.json`.
        averaging: how.
        start: what the distances are measured from.
        bundle_digest: the bundle the adapters must be of; None: they must agree.
        minimum: adapters that must remain for an average to be written.
        check: raises ValueError where a file's tensors are not those of the bundle's ladder.

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
    members = admit(contributions, averaging, start, bundle_digest, result, check)
    if len(members) < max(1, minimum):
        why = "; ".join(f"{name}: {reason}" for name, reason in result.refused.items())
        raise TooFew(
            f"{len(members)} adapters are left, {max(1, minimum)} are needed; refused: {why}",
            result,
            where=str(out),
            remedy="look at what was refused, then train again",
        )
    by_pictures = averaging.method == "mean"
    counts = [m.contribution.pictures if by_pictures else 1.0 for m in members]
    weights = bounded_weights(np.array(counts, np.float64))
    result.weights.update({m.name: float(w) for m, w in zip(members, weights, strict=True)})
    _write(out, members, weights, averaging, result)
    return result


def _write(
    out: Path,
    members: list[Member],
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
            known=None,  # and so is what its known pictures are near to
            calibration=_calibration(members),
            sha256=sha256_file(folder / ADAPTER),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )
        write_adapter_record(folder, record)
        write_json(folder / RESULT, to_json(result))


def _calibration(members: list[Member]) -> CalibrationRecord | None:
    """The middle temperature of ladders alone, which no single box moves far; else none.

    Between two in the middle that differ tenfold nobody can tell which is a box's invention.
    """
    told = [member.metadata for member in members]
    found = [one.calibration.temperature for one in told if one.calibration and not one.head]
    if len(found) < len(told):
        return None
    ordered = sorted(found)
    low, high = ordered[(len(found) - 1) // 2], ordered[len(found) // 2]
    if not high <= _TEMPERATURES_DIFFER * low < np.inf:
        return None
    middle = float(np.median(found))
    return CalibrationRecord(temperature=middle, ladder_temperature=middle)


def bounded_weights(counts: np.ndarray) -> np.ndarray:
    """Weights (n,) by counts (n,): they sum to 1, and none is above a half where n > 1.

    At most one can be; what is cut off it goes to the others in proportion.
    """
    weights = counts / counts.sum()
    largest = int(weights.argmax())
    if len(weights) > 1 and weights[largest] > _MOST_WEIGHT:
        rest = np.delete(counts, largest)
        weights = np.insert((1 - _MOST_WEIGHT) * rest / rest.sum(), largest, _MOST_WEIGHT)
    return np.asarray(weights)


def _combine(
    members: list[Member], name: str, weights: np.ndarray, averaging: Averaging
) -> np.ndarray:
    """One averaged tensor; integers and masks are the same everywhere and stay."""
    tensor = members[0].tensors[name]
    if not tensor.is_float:
        return members[0].values(name).reshape(tensor.shape)
    averaged = np.empty(tensor.size, dtype=tensor.dtype)
    for first, last in blocks(tensor, len(members)):
        block = stack(members, name, first, last)  # (boxes, n)
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
