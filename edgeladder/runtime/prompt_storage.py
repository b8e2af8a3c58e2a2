"""Prompts as an adapter stores them: quantized ones as indices, condensed ones left out.

A ladder's graphs take whole arrays (L, m, d). What is stored is less, and gives the same arrays
back bit for bit:

    tokens    rows of the prompts that condensation kept, (K, d); where they are quantized the
              index of each value in the codebook, `bits` bits each, in bytes
    mask      one bit per prompt
    codebook  2^bits values, fp16

Which tensors these are, `PromptTensors` says: of the bundle, or of the adapter's own record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeladder.core.errors import IntegrityError
from edgeladder.core.prompt_tensors import PACKED, PackedPrompts, PromptTensors

Array = np.ndarray

_TURNS = 50  # of `reactivate`


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


def finalize(parameters: Mapping[str, Array], names: PromptTensors) -> dict[str, Array]:
    """A trained ladder's arrays as they will be stored: quantized values in place of the trained.

    The ladder computes the same with them, to rounding. What condensation left out, and nothing
    reads, is zero. Other arrays pass as they are.
    """
    final = _drop(parameters, names)
    if names.codebook not in parameters or not parameters[names.live].any():
        return final
    codebook = parameters[names.codebook].astype(np.float16).astype(np.float32)
    statistics = np.empty_like(parameters[names.statistics])
    for which, name in enumerate(names.sets(parameters)):
        tokens = parameters[name]
        mean, deviation = spread(tokens, parameters.get(names.mask))
        statistics[which] = np.stack([mean, deviation])
        indices = nearest((tokens - mean) / deviation, codebook)
        final[name] = _values(indices, codebook, statistics[which])
    final |= {
        names.codebook: codebook,
        names.statistics: statistics,
        names.live: np.zeros_like(parameters[names.live]),
    }
    return _drop(final, names)


def reactivate(parameters: Mapping[str, Array], names: PromptTensors) -> dict[str, Array]:
    """Stored arrays ready to train on: values that quantizing turns into the stored ones.

    Quantized values have another mean and deviation than those that were trained. They are moved
    to the mean and deviation that were stored, and back into the cells of their codebook entries
    where that took them out, in turns until both hold or nearly so.
    """
    active = dict(parameters)
    if names.codebook not in parameters or parameters[names.live].all():
        return active
    mask, codebook = parameters.get(names.mask), parameters[names.codebook]
    middle = (codebook[1:] + codebook[:-1]) * np.float32(0.5)
    room = np.float32(1e-3) * np.diff(codebook).min()
    low = np.concatenate([[-np.inf], middle + room]).astype(np.float32)
    high = np.concatenate([middle - room, [np.inf]]).astype(np.float32)
    for which, name in enumerate(names.sets(parameters)):
        mean, deviation = parameters[names.statistics][which]
        values = (parameters[name] - mean) / deviation
        indices = nearest(values, codebook)
        for _ in range(_TURNS):
            centre, width = spread(values, mask)
            values = np.clip((values - centre) / width, low[indices], high[indices])
        centre, width = spread(values, mask)
        active[name] = ((values - centre) / width * deviation + mean).astype(np.float32)
    active[names.live] = np.ones_like(parameters[names.live])
    active[names.statistics] = np.zeros_like(parameters[names.statistics])
    return _drop(active, names)


def pack(
    parameters: Mapping[str, Array], names: PromptTensors
) -> tuple[dict[str, Array], PackedPrompts | None]:
    """Arrays to store, and how; None where they are stored as they are.

    Args:
        parameters: by name, `finalize`d; a ladder's parameters and buffers.
    """
    mask = parameters.get(names.mask)
    quantized = names.codebook in parameters and not parameters[names.live].any()
    condensed = mask is not None and not mask.all()
    tensors = dict(parameters)
    if not quantized and not condensed:
        return tensors, None
    kept = np.ones(parameters[names.text].shape[:2], bool) if mask is None else mask > 0
    packed: dict[str, Array] = {}
    codebook = tensors.pop(names.codebook) if quantized else np.zeros(1, np.float32)
    bits = int(codebook.size).bit_length() - 1
    for which, name in enumerate(names.sets(parameters)):
        rows = tensors.pop(name)[kept]  # (K, d)
        if quantized:
            mean, deviation = (_rows(s, kept) for s in parameters[names.statistics][which])
            indices = nearest((rows - mean) / deviation, codebook)
            packed[name] = _to_bits(indices, bits)
        else:
            packed[name] = rows
    for name in names.places(tensors) if condensed else ():
        packed[name] = tensors.pop(name)[kept.any(0)]
    if mask is not None:
        packed[names.mask] = np.packbits(tensors.pop(names.mask) > 0)
    if quantized:
        packed[names.codebook] = codebook.astype(np.float16)
        tensors.pop(names.live)
    tensors |= {PACKED + name: np.ascontiguousarray(value) for name, value in packed.items()}
    rungs, length, width = parameters[names.text].shape
    described = PackedPrompts(
        rungs=rungs,
        prompts_per_rung=length,
        width=width,
        kept=int(kept.sum()),
        bits=bits if quantized else None,
        bytes=sum(packed[name].nbytes for name in names.sets(parameters)),
    )
    return tensors, described


def unpack(
    tensors: Mapping[str, Array], described: PackedPrompts | None, names: PromptTensors
) -> dict[str, Array]:
    """The arrays that `pack` was given, bit for bit.

    Raises:
        IntegrityError: a part is missing or not as long as it should be.
    """
    if described is None:
        return dict(tensors)
    try:
        return _unpack(tensors, described, names)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise IntegrityError(
            f"the adapter's stored prompts are not readable: {error!r}",
            remedy="copy the adapter again from the run that wrote it",
        ) from error


def _unpack(
    tensors: Mapping[str, Array], described: PackedPrompts, names: PromptTensors
) -> dict[str, Array]:
    rungs, length, width = described.rungs, described.prompts_per_rung, described.width
    plain = {n: v for n, v in tensors.items() if not n.startswith(PACKED)}
    packed = {n[len(PACKED) :]: v for n, v in tensors.items() if n.startswith(PACKED)}
    kept = np.ones((rungs, length), bool)
    if names.mask in packed:
        flags = np.unpackbits(packed[names.mask], count=rungs * length).reshape(rungs, length)
        kept = flags > 0
        plain[names.mask] = flags.astype(np.float32)
    bits = described.bits
    if bits:
        codebook = packed[names.codebook].astype(np.float32)
        plain[names.codebook] = codebook
        plain[names.live] = np.zeros(1, np.float32)
    for which, name in enumerate(names.sets(packed)):
        whole = np.zeros((rungs, length, width), np.float32)
        if bits:
            indices = _from_bits(packed[name], bits, int(kept.sum()) * width).reshape(-1, width)
            statistics = [_rows(s, kept) for s in plain[names.statistics][which]]
            whole[kept] = _values(indices, codebook, statistics)
        else:
            whole[kept] = packed[name]
        plain[name] = whole
    for name in names.places(packed):
        whole = np.zeros((length, width), np.float32)
        whole[kept.any(0)] = packed[name]
        plain[name] = whole
    return plain


def _drop(parameters: Mapping[str, Array], names: PromptTensors) -> dict[str, Array]:
    """Zeros in place of what condensation left out."""
    dropped = dict(parameters)
    mask = parameters.get(names.mask)
    if mask is None or mask.all():
        return dropped
    kept = mask.astype(bool)
    for name in names.sets(parameters):
        dropped[name] = np.where(kept[..., None], parameters[name], np.float32(0))
    for name in names.places(parameters):
        dropped[name] = np.where(kept.any(axis=0, keepdims=True).T, parameters[name], np.float32(0))
    return dropped


def _rows(statistic: Array, kept: Array) -> Array:
    """One value per rung (L, 1, 1) -> one per kept prompt (K, 1)."""
    return np.asarray(np.broadcast_to(statistic[:, 0], kept.shape)[kept][:, None])


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
