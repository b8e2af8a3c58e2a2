"""Prompts as an adapter stores them: quantized ones as indices, condensed ones left out.

A ladder's graphs take whole arrays (L, m, d). What is stored is less, and gives the same arrays
back bit for bit:

    prompts.tokens    rows of the prompts that condensation kept, (K, d); where they are quantized
                      the index of each value in the codebook, `bits` bits each, in bytes
    prompts.mask      one bit per prompt
    prompts.codebook  2^bits values, fp16
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeladder.core.errors import IntegrityError

Array = np.ndarray

TOKENS = ("prompts.tokens", "prompts.image_tokens")
MASK, CODEBOOK = "prompts.mask", "prompts.codebook"
LIVE, STATISTICS = "prompts.live", "prompts.statistics"
_BY_PLACE = ("prompts.memory_key", "prompts.memory_value")  # (m, d), shared by all rungs
_TURNS = 50  # of `reactivate`
PACKED = "packed:"  # before the name of a tensor that is not stored as the ladder takes it


def spread(tokens: Array, mask: Array | None) -> tuple[Array, Array]:
    """Mean and deviation of each rung's kept prompts, (L, 1, 1) each, as the graph measures them.

    Args:
        tokens: (L, m, d).
        mask: (L, m), 1 for kept prompts; None: all are.
    """
    weight = np.ones(tokens.shape[:2], np.float32) if mask is None else mask
    share = (weight / (weight.sum(1, keepdims=True) + np.float32(1e-12)))[..., None]
    mean = (tokens.mean(2, keepdims=True) * share).sum(1, keepdims=True)
    centred = tokens - mean
    square = ((centred * centred).mean(2, keepdims=True) * share).sum(1, keepdims=True)
    return mean, np.sqrt(square + np.float32(1e-24))


def nearest(normal: Array, codebook: Array) -> Array:
    """Index of the nearest codebook entry of each value; the codebook ascends."""
    return np.searchsorted((codebook[1:] + codebook[:-1]) * np.float32(0.5), normal)


def finalize(parameters: Mapping[str, Array]) -> dict[str, Array]:
    """A trained ladder's arrays as they will be stored: quantized values in place of the trained.

    The ladder computes the same with them, to rounding. What condensation left out, and nothing
    reads, is zero. Other arrays pass as they are.
    """
    final = _drop(parameters)
    if CODEBOOK not in parameters or not parameters[LIVE].any():
        return final
    codebook = parameters[CODEBOOK].astype(np.float16).astype(np.float32)
    statistics = np.empty_like(parameters[STATISTICS])
    for which, name in enumerate(_sets(parameters)):
        tokens = parameters[name]
        mean, deviation = spread(tokens, parameters.get(MASK))
        statistics[which] = np.stack([mean, deviation])
        indices = nearest((tokens - mean) / deviation, codebook)
        final[name] = _values(indices, codebook, statistics[which])
    final |= {CODEBOOK: codebook, STATISTICS: statistics, LIVE: np.zeros_like(parameters[LIVE])}
    return _drop(final)


def reactivate(parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Stored arrays ready to train on: values that quantizing turns into the stored ones.

    Quantized values have another mean and deviation than those that were trained. They are moved
    to the mean and deviation that were stored, and back into the cells of their codebook entries
    where that took them out, in turns until both hold or nearly so.
    """
    active = dict(parameters)
    if CODEBOOK not in parameters or parameters[LIVE].all():
        return active
    mask, codebook = parameters.get(MASK), parameters[CODEBOOK]
    middle = (codebook[1:] + codebook[:-1]) * np.float32(0.5)
    room = np.float32(1e-3) * np.diff(codebook).min()
    low = np.concatenate([[-np.inf], middle + room]).astype(np.float32)
    high = np.concatenate([middle - room, [np.inf]]).astype(np.float32)
    for which, name in enumerate(_sets(parameters)):
        mean, deviation = parameters[STATISTICS][which]
        values = (parameters[name] - mean) / deviation
        indices = nearest(values, codebook)
        for _ in range(_TURNS):
            centre, width = spread(values, mask)
            values = np.clip((values - centre) / width, low[indices], high[indices])
        centre, width = spread(values, mask)
        active[name] = ((values - centre) / width * deviation + mean).astype(np.float32)
    active[LIVE] = np.ones_like(parameters[LIVE])
    active[STATISTICS] = np.zeros_like(parameters[STATISTICS])
    return _drop(active)


def pack(parameters: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Any] | None]:
    """Arrays to store, and what they are in words; None where they are stored as they are.

    Args:
        parameters: by name, `finalize`d; a ladder's parameters and buffers.
    """
    mask = parameters.get(MASK)
    quantized = CODEBOOK in parameters and not parameters[LIVE].any()
    condensed = mask is not None and not mask.all()
    tensors = dict(parameters)
    if not quantized and not condensed:
        return tensors, None
    kept = np.ones(parameters[TOKENS[0]].shape[:2], bool) if mask is None else mask > 0
    packed: dict[str, Array] = {}
    codebook = tensors.pop(CODEBOOK) if quantized else np.zeros(1, np.float32)
    bits = int(codebook.size).bit_length() - 1
    for which, name in enumerate(_sets(parameters)):
        rows = tensors.pop(name)[kept]  # (K, d)
        if quantized:
            mean, deviation = (_rows(s, kept) for s in parameters[STATISTICS][which])
            indices = nearest((rows - mean) / deviation, codebook)
            packed[name] = _to_bits(indices, bits)
        else:
            packed[name] = rows
    for name in (n for n in _BY_PLACE if n in tensors and condensed):
        packed[name] = tensors.pop(name)[kept.any(0)]
    if mask is not None:
        packed[MASK] = np.packbits(tensors.pop(MASK) > 0)
    if quantized:
        packed[CODEBOOK] = codebook.astype(np.float16)
        tensors.pop(LIVE)
    tensors |= {PACKED + name: np.ascontiguousarray(value) for name, value in packed.items()}
    rungs, length, width = parameters[TOKENS[0]].shape
    described = {
        "rungs": rungs,
        "prompts_per_rung": length,
        "width": width,
        "kept": int(kept.sum()),
        "bits": bits if quantized else None,
        "bytes": sum(packed[name].nbytes for name in _sets(parameters)),
    }
    return tensors, described


def unpack(tensors: Mapping[str, Array], described: Mapping[str, Any] | None) -> dict[str, Array]:
    """The arrays that `pack` was given, bit for bit.

    Raises:
        IntegrityError: a part is missing or not as long as it should be.
    """
    if described is None:
        return dict(tensors)
    try:
        return _unpack(tensors, described)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise IntegrityError(
            f"the adapter's stored prompts are not readable: {error!r}",
            remedy="copy the adapter again from the run that wrote it",
        ) from error


def _unpack(tensors: Mapping[str, Array], described: Mapping[str, Any]) -> dict[str, Array]:
    rungs, length, width = (described[k] for k in ("rungs", "prompts_per_rung", "width"))
    plain = {n: v for n, v in tensors.items() if not n.startswith(PACKED)}
    packed = {n[len(PACKED) :]: v for n, v in tensors.items() if n.startswith(PACKED)}
    kept = np.ones((rungs, length), bool)
    if MASK in packed:
        flags = np.unpackbits(packed[MASK], count=rungs * length).reshape(rungs, length)
        kept = flags > 0
        plain[MASK] = flags.astype(np.float32)
    bits = described["bits"]
    if bits:
        codebook = packed[CODEBOOK].astype(np.float32)
        plain[CODEBOOK] = codebook
        plain[LIVE] = np.zeros(1, np.float32)
    for which, name in enumerate(n for n in TOKENS if n in packed):
        whole = np.zeros((rungs, length, width), np.float32)
        if bits:
            indices = _from_bits(packed[name], bits, int(kept.sum()) * width).reshape(-1, width)
            statistics = [_rows(s, kept) for s in plain[STATISTICS][which]]
            whole[kept] = _values(indices, codebook, statistics)
        else:
            whole[kept] = packed[name]
        plain[name] = whole
    for name in (n for n in _BY_PLACE if n in packed):
        whole = np.zeros((length, width), np.float32)
        whole[kept.any(0)] = packed[name]
        plain[name] = whole
    return plain


def _drop(parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Zeros in place of what condensation left out."""
    dropped = dict(parameters)
    mask = parameters.get(MASK)
    if mask is None or mask.all():
        return dropped
    kept = mask.astype(bool)
    for name in _sets(parameters):
        dropped[name] = np.where(kept[..., None], parameters[name], np.float32(0))
    for name in (n for n in _BY_PLACE if n in parameters):
        dropped[name] = np.where(kept.any(axis=0, keepdims=True).T, parameters[name], np.float32(0))
    return dropped


def _sets(parameters: Mapping[str, Array]) -> list[str]:
    return [name for name in TOKENS if name in parameters]


def _rows(statistic: Array, kept: Array) -> Array:
    """One value per rung (L, 1, 1) -> one per kept prompt (K, 1)."""
    return np.broadcast_to(statistic[:, 0], kept.shape)[kept][:, None]


def _values(indices: Array, codebook: Array, statistics: Any) -> Array:
    mean, deviation = statistics
    return np.asarray(deviation * codebook[indices] + mean, np.float32)


def _to_bits(indices: Array, bits: int) -> Array:
    """`bits` bits per index, the highest first, in whole bytes."""
    flags = (indices.reshape(-1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(flags.astype(np.uint8))


def _from_bits(packed: Array, bits: int, count: int) -> Array:
    flags = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    if flags.size != count * bits or packed.size != -(-count * bits // 8):
        raise ValueError(f"{packed.size} bytes for {count} indices of {bits} bits")
    return flags.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1))
