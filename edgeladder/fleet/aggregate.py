"""Federated averaging of adapters: plain, trimmed or median, with what does not belong refused.

    mean     weighted by pictures: FedAvg, McMahan et al. 2017, arXiv:1602.05629, algorithm 1
    trimmed  coordinate-wise trimmed mean; median: coordinate-wise median; both withstand a
             minority of arbitrary boxes: Yin et al. 2018, arXiv:1803.01498, definitions 1 and 2

Adapters are read a block at a time from all files, so memory depends on the size of one adapter
and not on the number of boxes.
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeladder.core.errors import ConfigError, DataError, IntegrityError
from edgeladder.core.files import building, read_json, sha256_file, write_json
from edgeladder.core.ownership import require_ours
from edgeladder.core.tensors import TensorEntry, read_header, read_values, write_tensors

ADAPTER = "adapter.safetensors"
CARD = "adapter.json"
Method = Literal["mean", "trimmed", "median"]
# For trainings whose adapters are to be averaged: a closed-form head is fitted to one box's own
# features, and cannot be. The whole section, since a weight without a head is refused.
HEADLESS = "head={kind: none}"
_BLOCK_VALUES = 1 << 20  # float64 values held at a time, over all boxes
_MUST_AGREE = ("bundle_digest", "ladder_digest", "model", "classes")


@dataclass(frozen=True)
class Contribution:
    """One box's adapter folder and the number of pictures it was trained on."""

    name: str
    folder: Path
    pictures: float = 1.0


@dataclass
class AggregateResult:
    """Who is in the average and who is not."""

    method: Method
    weights: dict[str, float] = field(default_factory=dict)  # sum to 1
    refused: dict[str, str] = field(default_factory=dict)  # name -> why
    distances: dict[str, float] = field(default_factory=dict)  # L2, from the start or the median

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "method": self.method,
            "weights": self.weights,
            "refused": self.refused,
            "distances": self.distances,
        }


class TooFew(DataError):
    """Not enough adapters remain for an average."""

    def __init__(self, message: str, result: AggregateResult, **more: str):
        super().__init__(message, where=more.get("where"), remedy=more.get("remedy"))
        self.result = result


def aggregate(
    contributions: list[Contribution],
    out: Path,
    *,
    method: Method = "mean",
    trim: float = 0.2,
    bound: float = 10.0,
    start: Path | None = None,
    zeros: Collection[str] = (),
    bundle_digest: str | None = None,
    minimum: int = 1,
) -> AggregateResult:
    """Average adapters into the folder `out` (adapter.safetensors, adapter.json, aggregate.json).

    Args:
        contributions: folders with `adapter.safetensors` and `adapter.json`.
        method: how; only `mean` weighs by pictures.
        trim: share of values dropped at each end by `trimmed`; at least one from three boxes on.
        bound: an adapter further from the start than `bound` times the median distance is refused;
            from three boxes on (of two, none can be told to be the odd one).
        start: safetensors file all boxes began from; None: distances from their median.
        zeros: tensors that began at zero where the start leaves them out, as a bundle does.
        bundle_digest: the bundle the adapters must be of; None: they must agree.
        minimum: adapters that must remain for an average to be written.

    Raises:
        ConfigError: nothing to average, or an option out of range.
        IntegrityError: adapters of different bundles or classes and no `bundle_digest` to tell
            which are right.
        TooFew: fewer than `minimum` adapters remain.
    """
    _check_options(contributions, trim, bound)
    require_ours(out, "average")
    result = AggregateResult(method)
    cards = {c.name: _read_card(c, result) for c in contributions}
    _refuse_mixed(cards, result, bundle_digest)
    kept = [c for c in contributions if c.name not in result.refused]
    headers = {c.name: _read_tensors(c, result) for c in kept}
    kept = [c for c in kept if c.name not in result.refused]
    _refuse_odd_tensors(kept, headers, result)
    kept = [c for c in kept if c.name not in result.refused]
    if kept:
        header = headers[kept[0].name]
        result.distances = _distances(kept, headers, header, start, zeros)
        _refuse_far(kept, result, bound)
        kept = [c for c in kept if c.name not in result.refused]
    if len(kept) < max(1, minimum):
        reasons = "; ".join(f"{name}: {why}" for name, why in result.refused.items())
        raise TooFew(
            f"{len(kept)} adapters are left, {max(1, minimum)} are needed; refused: {reasons}",
            result,
            where=str(out),
            remedy="look at what was refused, then train again",
        )
    weights = np.array([c.pictures for c in kept] if method == "mean" else [1.0] * len(kept))
    weights = weights / weights.sum()
    result.weights = {c.name: float(w) for c, w in zip(kept, weights, strict=True)}
    with building(out, "average") as folder:
        tensors = {
            name: _combine(kept, headers, name, tensor, weights, method, trim)
            for name, tensor in header.items()
        }
        write_tensors(folder / ADAPTER, tensors)
        card = dict(cards[kept[0].name] or {})
        card["head"] = None  # a closed-form head is fitted to one box's own features
        card["sha256"] = sha256_file(folder / ADAPTER)
        card["created"] = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        write_json(folder / CARD, card)
        write_json(folder / "aggregate.json", result.to_dict())
    return result


def _check_options(contributions: list[Contribution], trim: float, bound: float) -> None:
    if not contributions:
        raise ConfigError("no adapters to average", remedy="`edgeladder fleet pull` collects them")
    if not 0 <= trim < 0.5:
        raise ConfigError(
            f"--trim {trim} is not in [0, 0.5)", remedy="drop at most each end's half"
        )
    if not bound > 1:
        raise ConfigError(f"--bound {bound} is not above 1", remedy="10 is a good bound")
    twice = [name for name, n in Counter(c.name for c in contributions).items() if n > 1]
    if twice:
        raise ConfigError(f"{twice[0]!r} is there twice", remedy="name every box once")


def _read_card(contribution: Contribution, result: AggregateResult) -> dict[str, Any] | None:
    pictures = contribution.pictures
    if not (isinstance(pictures, (int, float)) and np.isfinite(pictures) and pictures > 0):
        result.refused[contribution.name] = f"{pictures} is no number of pictures"
        return None
    try:
        card = read_json(contribution.folder / CARD)
    except FileNotFoundError:
        result.refused[contribution.name] = "no adapter there"
        return None
    except ValueError:
        card = None
    if not isinstance(card, dict):
        result.refused[contribution.name] = f"{CARD} is not readable"
        return None
    return card


def _identity(card: dict[str, Any]) -> str:
    return json.dumps([card.get(key) for key in _MUST_AGREE], sort_keys=True)


def _refuse_mixed(
    cards: dict[str, dict[str, Any] | None],
    result: AggregateResult,
    bundle_digest: str | None,
) -> None:
    known = {name: card for name, card in cards.items() if card is not None}
    if bundle_digest is not None:
        for name, card in list(known.items()):
            if card.get("bundle_digest") != bundle_digest:
                result.refused[name] = "of another bundle"
                del known[name]
    kinds = Counter(_identity(card) for card in known.values())
    if len(kinds) < 2:
        return
    (common, count), (_, second) = kinds.most_common(2)
    differing = [name for name, card in known.items() if _identity(card) != common]
    if bundle_digest is None or count == second:
        raise IntegrityError(
            f"mixed bundles or classes: {', '.join(differing)} differ from the rest",
            remedy="aggregate only runs of one bundle and one list of classes (a classes.yaml "
            "pushed to every box gives them one)",
        )
    for name in differing:
        result.refused[name] = "of other classes"


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


def _refuse_odd_tensors(
    kept: list[Contribution], headers: dict[str, dict[str, TensorEntry]], result: AggregateResult
) -> None:
    """Refuse adapters whose tensors or integer values differ from the commonest."""
    if not kept:
        return

    def signature(c: Contribution) -> str:
        parts = [(n, str(t.dtype), t.shape) for n, t in sorted(headers[c.name].items())]
        exact = [
            read_values(c.folder / ADAPTER, t).tobytes()
            for _, t in sorted(headers[c.name].items())
            if not t.is_float
        ]
        return str(parts) + hashlib.sha256(b"".join(exact)).hexdigest()

    signatures = {c.name: signature(c) for c in kept}
    common = Counter(signatures.values()).most_common(1)[0][0]
    for name, found in signatures.items():
        if found != common:
            result.refused[name] = (
                "its tensors differ from the others' in name, shape, mask or quantized prompts, "
                "which cannot be averaged"
            )


def _blocks(tensor: TensorEntry, boxes: int) -> list[tuple[int, int]]:
    step = max(1, _BLOCK_VALUES // max(1, boxes))
    return [(first, min(first + step, tensor.size)) for first in range(0, tensor.size, step)]


def _stack(
    kept: list[Contribution],
    headers: dict[str, dict[str, TensorEntry]],
    name: str,
    first: int,
    last: int,
) -> np.ndarray:
    """One block of one tensor from every box: (boxes, last - first) float64."""
    rows = [read_values(c.folder / ADAPTER, headers[c.name][name], first, last) for c in kept]
    return np.stack(rows).astype(np.float64)


def _distances(
    kept: list[Contribution],
    headers: dict[str, dict[str, TensorEntry]],
    header: dict[str, TensorEntry],
    start: Path | None,
    zeros: Collection[str],
) -> dict[str, float]:
    squares = np.zeros(len(kept))
    origin = read_header(start).entries if start is not None else {}
    for name, tensor in header.items():
        if not tensor.is_float:
            continue
        known = origin.get(name)
        for first, last in _blocks(tensor, len(kept)):
            block = _stack(kept, headers, name, first, last)
            if start is not None and known is not None and known.shape == tensor.shape:
                centre = read_values(start, known, first, last).astype(np.float64)
            elif known is None and name in zeros:
                centre = np.zeros(())
            else:
                centre = np.median(block, axis=0)
            squares += ((block - centre) ** 2).sum(axis=1)
    return {c.name: float(d) for c, d in zip(kept, np.sqrt(squares), strict=True)}


def _refuse_far(kept: list[Contribution], result: AggregateResult, bound: float) -> None:
    if len(kept) < 3:
        return
    middle = float(np.median([result.distances[c.name] for c in kept]))
    for c in kept:
        distance = result.distances[c.name]
        if middle > 0 and distance > bound * middle:
            result.refused[c.name] = (
                f"{distance / middle:.3g} times as far off as the median box, bound {bound:g}"
            )


def _combine(
    kept: list[Contribution],
    headers: dict[str, dict[str, TensorEntry]],
    name: str,
    tensor: TensorEntry,
    weights: np.ndarray,
    method: Method,
    trim: float,
) -> np.ndarray:
    """One averaged tensor; integers and masks are the same everywhere and stay."""
    if not tensor.is_float:
        return read_values(kept[0].folder / ADAPTER, tensor).reshape(tensor.shape)
    averaged = np.empty(tensor.size, dtype=tensor.dtype)
    for first, last in _blocks(tensor, len(kept)):
        block = _stack(kept, headers, name, first, last)  # (boxes, n)
        averaged[first:last] = combine(block, weights, method, trim)
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
        return np.median(block, axis=0)
    cut = int(trim * boxes)
    if boxes >= 3 and trim > 0:
        cut = max(1, cut)
    return np.sort(block, axis=0)[cut : boxes - cut].mean(axis=0)
