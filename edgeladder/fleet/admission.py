"""Which adapters may be averaged: what boxes send is judged before any of it counts.

A box may be broken or hostile. Refused, each with its reason: what is not readable or not of the
others' kind, counts of pictures and values that no honest box has, and what lies too far off. So
one box's nonsense costs the fleet that box, and neither the average nor the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeladder.core.adapter_record import KNOWN, AdapterRecord, read_adapter_record
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import sha256_file
from edgeladder.core.records import compact_json
from edgeladder.core.tensors import TensorEntry, read_header, read_values
from edgeladder.fleet.averaging import (
    ADAPTER,
    MOST_PICTURES,
    AggregateResult,
    Averaging,
    Contribution,
    Start,
)

Check = Callable[[Path], None]
_BLOCK_VALUES = 1 << 20  # float64 values held at a time, over all boxes
LARGEST_VALUE = 1e6  # of a parameter; trained ladders stay below a thousand


@dataclass(frozen=True)
class Member:
    """An adapter that may be averaged, opened."""

    contribution: Contribution
    metadata: AdapterRecord
    tensors: dict[str, TensorEntry]

    @property
    def name(self) -> str:
        """Of the box."""
        return self.contribution.name

    def values(self, tensor: str, first: int = 0, last: int | None = None) -> np.ndarray:
        """Values first to last of a tensor, flat."""
        path = self.contribution.folder / ADAPTER
        return read_values(path, self.tensors[tensor], first, last)


def admit(
    contributions: list[Contribution],
    averaging: Averaging,
    start: Start,
    bundle_digest: str | None,
    result: AggregateResult,
    check: Check = lambda path: None,
) -> list[Member]:
    """The adapters that may be averaged; `result` is told the others' reasons, and distances.

    Args:
        check: raises ValueError where a file's tensors are not those of the bundle's ladder.

    Raises:
        IntegrityError: different bundles or classes and no `bundle_digest` to tell which are right.
        ConfigError: the start is not of a training.
    """
    members = _open(contributions, averaging, result, bundle_digest, check)
    if not members:
        return []
    result.distances.update(_distances(members, start))
    return _refuse_far(members, result, averaging.bound)


def _open(
    contributions: list[Contribution],
    averaging: Averaging,
    result: AggregateResult,
    bundle_digest: str | None,
    check: Check,
) -> list[Member]:
    """The adapters that belong together; the others are refused, each with its reason."""
    found = {c.name: _read_metadata(c, averaging, result) for c in contributions}
    known = {name: record for name, record in found.items() if record is not None}
    _refuse_mixed(known, result, bundle_digest)
    kept = [c for c in contributions if c.name not in result.refused]
    members = [Member(c, known[c.name], _read_tensors(c, result, check)) for c in kept]
    members = [member for member in members if member.name not in result.refused]
    return _refuse_odd_tensors(members, result)


def _read_metadata(
    contribution: Contribution, averaging: Averaging, result: AggregateResult
) -> AdapterRecord | None:
    try:
        record = read_adapter_record(contribution.folder)
        weights = contribution.folder / ADAPTER
        if record.sha256 and sha256_file(weights) != record.sha256:
            raise IntegrityError("its weights are not those that its adapter.json names")
        _check_pictures(contribution.pictures, record, averaging.shots)
    except FileNotFoundError:
        result.refused[contribution.name] = "no adapter there"
    except IntegrityError as error:
        result.refused[contribution.name] = error.message
    except (OSError, ValueError) as error:  # a folder, a pipe, not readable
        result.refused[contribution.name] = str(error)
    else:
        return record
    return None


def _check_pictures(pictures: float, record: AdapterRecord, shots: int | None) -> None:
    """Raise IntegrityError where a box cannot have trained on so many pictures."""
    if not (isinstance(pictures, (int, float)) and 0 < pictures < float("inf")):
        raise IntegrityError(f"{pictures} is no number of pictures")
    most = MOST_PICTURES if shots is None else shots * len(record.classes)
    if pictures > most:
        why = "no box has" if shots is None else f"{shots} of each class are"
        raise IntegrityError(f"it claims {pictures:g} pictures, more than the {most} that {why}")


def _identity(record: AdapterRecord) -> str:
    # what the classes are called decides the answers as much as their order does
    words = [record.class_names, record.templates, record.text.get("aliases")]
    kind = [record.bundle_digest, record.ladder_digest, record.model, record.classes]
    return compact_json([*kind, *words])


def _refuse_mixed(
    known: dict[str, AdapterRecord], result: AggregateResult, bundle_digest: str | None
) -> None:
    """Refuse adapters of another bundle, and of other classes or names than most have."""
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


def _read_tensors(
    contribution: Contribution, result: AggregateResult, check: Check
) -> dict[str, TensorEntry]:
    path = contribution.folder / ADAPTER
    try:
        check(path)
        # features of a box's pictures are its own, as many as it has: no part of an average
        header = {
            name: tensor
            for name, tensor in read_header(path).entries.items()
            if not name.startswith(KNOWN)
        }
        for name, tensor in header.items():
            if tensor.is_float:
                for first, last in blocks(tensor, 1):
                    _check_values(name, read_values(path, tensor, first, last))
    except (OSError, ValueError) as error:
        result.refused[contribution.name] = str(error)
        return {}
    return header


def _check_values(name: str, values: np.ndarray) -> None:
    """Raise ValueError for what no training gives."""
    largest = np.abs(values).max(initial=0.0)
    if not np.isfinite(largest):
        raise ValueError(f"{name} holds NaN or infinity")
    if largest > LARGEST_VALUE:
        raise ValueError(f"{name} holds {largest:.3g}, parameters stay below {LARGEST_VALUE:g}")


def _refuse_odd_tensors(members: list[Member], result: AggregateResult) -> list[Member]:
    """Refuse adapters whose tensors or integer values differ from the commonest."""

    def signature(member: Member) -> str:
        tensors = sorted(member.tensors.items())
        parts = [(name, str(tensor.dtype), tensor.shape) for name, tensor in tensors]
        exact = [member.values(name).tobytes() for name, tensor in tensors if not tensor.is_float]
        told = (member.metadata.prompts, member.metadata.prompt_tensors)  # how they are read
        return str((parts, told)) + hashlib.sha256(b"".join(exact)).hexdigest()

    signatures = {member.name: signature(member) for member in members}
    common = Counter(signatures.values()).most_common(1)
    for name, found in signatures.items():
        if found != common[0][0]:
            result.refused[name] = (
                "its tensors differ from the others' in name, shape, mask or quantized prompts, "
                "which cannot be averaged"
            )
    return [member for member in members if member.name not in result.refused]


def blocks(tensor: TensorEntry, boxes: int) -> list[tuple[int, int]]:
    """First and last value of the parts of a tensor that are held at a time, of so many boxes."""
    step = max(1, _BLOCK_VALUES // max(1, boxes))
    return [(first, min(first + step, tensor.size)) for first in range(0, tensor.size, step)]


def stack(members: list[Member], name: str, first: int, last: int) -> np.ndarray:
    """One block of one tensor from every box: (boxes, last - first) float64."""
    return np.stack([m.values(name, first, last) for m in members]).astype(np.float64)


def _distances(members: list[Member], start: Start) -> dict[str, float]:
    """How far each is from the start, L2.

    Where that is not known, from the median; of two, both as far from it, from zero.

    Raises:
        ConfigError: the start is no file of tensors, or not of a training.
    """
    squares = np.zeros(len(members))
    origin = _origin(start)
    for name, tensor in members[0].tensors.items():
        if not tensor.is_float:
            continue
        known = origin.get(name)
        for first, last in blocks(tensor, len(members)):
            block = stack(members, name, first, last)
            if start.file is not None and known is not None and known.shape == tensor.shape:
                centre = read_values(start.file, known, first, last).astype(np.float64)
                if not np.abs(centre).max(initial=0.0) <= LARGEST_VALUE:
                    raise _no_start(start.file, f"{name} holds what no training gives")
            elif (known is None and name in start.zeros) or (
                start.file is None and len(members) == 2
            ):
                centre = np.zeros(())
            else:
                centre = np.median(block, axis=0)
            squares += ((block - centre) ** 2).sum(axis=1)
    return {m.name: float(d) for m, d in zip(members, np.sqrt(squares), strict=True)}


def _origin(start: Start) -> dict[str, TensorEntry]:
    if start.file is None:
        return {}
    try:
        return read_header(start.file).entries
    except (OSError, ValueError) as error:
        raise _no_start(start.file, str(error)) from error


def _no_start(file: Path, why: str) -> ConfigError:
    return ConfigError(
        f"this is nothing that boxes began from: {why}",
        where=str(file),
        remedy="name an adapter's folder or its adapter.safetensors with --start, or leave it out",
    )


def _refuse_far(members: list[Member], result: AggregateResult, bound: float) -> list[Member]:
    ordered = sorted(result.distances[m.name] for m in members)
    middle = ordered[(len(members) - 1) // 2]  # of an even number the lower: the nearer of two
    others = "other box" if len(members) == 2 else "median box"
    for member in members if middle > 0 else []:
        distance = result.distances[member.name]
        if distance > bound * middle:
            result.refused[member.name] = (
                f"{distance / middle:.3g} times as far off as the {others}, bound {bound:g}"
            )
    return [member for member in members if member.name not in result.refused]
