"""What one cached sample holds, and how activations become stored bytes and back.

A sample's taps of equal shape are one field, so that a reader fetches them with one read. Taps are
standardised per token, so 16 or 8 bits hold them well; embeddings stay float32.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeladder.core.bundle import Side
from edgeladder.core.errors import IntegrityError
from edgeladder.runtime.float16 import to_float16

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.manifest import TowerRecord

TapDtype = Literal["fp16", "int8"]
KEY_BYTES = 16  # of a SHA-256: a chance of 2^-90 for a clash among a million samples
KEYS = "keys"
CHECKS = "checks"  # of a sample: a CRC-32 of each of its other fields
EMBEDDING = "embedding"
EMBEDDING_PRE = "embedding_pre"
_VERSION = 2  # of the layout: part of the store's name
_LEVELS = 127


@dataclass(frozen=True)
class Field:
    """One stored tensor; `shape` is a sample's."""

    name: str
    dtype: str  # numpy's
    shape: tuple[int, ...]

    @property
    def sample_bytes(self) -> int:
        """Stored bytes of one sample."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class TapField:
    """Where taps of one shape are: the stored field, and its scales where stored in 8 bits."""

    values: Field  # (L, T, W)
    scales: Field | None  # (L, T)
    taps: tuple[int, ...]  # indices into the tower's taps


class Layout:
    """The fields of one side's samples."""

    def __init__(self, bundle: Bundle, side: Side, dtype: TapDtype, arithmetic: str = ""):
        """Lay out a sample.

        Args:
            arithmetic: of the provider that the tower runs on (`ProviderChoice`); empty: the
                CPU's. What others compute differs in the last digits and is never mixed with it.
        """
        tower = getattr(bundle.manifest, side)
        width = bundle.manifest.model.embedding_dim
        self.side = side
        self.dtype = dtype
        self.tap_names = [tap.name for tap in tower.taps]
        self.tap_fields = _tap_fields(tower, dtype)
        self.embedding = Field(EMBEDDING, "float32", (width,))
        self.embedding_pre: Field | None = None
        self.fields = [Field(KEYS, "uint8", (KEY_BYTES,)), self.embedding]
        pre_width = _pre_width(tower) if side == "image" else None
        if pre_width is not None:
            self.embedding_pre = Field(EMBEDDING_PRE, "float32", (pre_width,))
            self.fields.append(self.embedding_pre)
        for group in self.tap_fields:
            self.fields.append(group.values)
            if group.scales is not None:
                self.fields.append(group.scales)
        self.fields.append(Field(CHECKS, "uint32", (len(self.fields),)))
        self.sample_bytes = sum(field.sample_bytes for field in self.fields)
        self.name = f"{side}-{self._digest(bundle.tower_key(side), arithmetic)[:16]}-{dtype}"
        if arithmetic:
            self.name += "-" + arithmetic.partition(" ")[0]

    def _digest(self, tower_key: str, arithmetic: str) -> str:
        """Of all that decides a sample's content: tower, cut, preprocessing, fields, provider."""
        fields = [(field.name, field.dtype, field.shape) for field in self.fields]
        parts = [_VERSION, tower_key, self.tap_names, fields, *([arithmetic] if arithmetic else [])]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def locate(self, taps: list[int]) -> tuple[TapField, list[int]]:
        """The field that holds these taps (all of one shape) and their places in it."""
        for group in self.tap_fields:
            if taps[0] in group.taps:
                return group, [group.taps.index(tap) for tap in taps]
        raise KeyError(f"tap {taps[0]} is not stored")

    def pack(self, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Stored arrays of n samples from a tower's outputs by tap name and `embedding` (n, ..).

        The embedding is L2-normalised here, and `embedding_pre` divided by the same length, as
        the ladder reads it: projected, what is stored gives the stored embedding.
        """
        embedding = np.asarray(outputs[EMBEDDING], np.float32)
        stored = {EMBEDDING: l2_normalize(embedding)}
        if self.embedding_pre is not None:
            length = np.sqrt(np.sum(embedding * embedding, axis=-1, keepdims=True))
            before = np.asarray(outputs[EMBEDDING_PRE], np.float32)
            stored[EMBEDDING_PRE] = before / np.maximum(length, np.float32(1e-12))
        for group in self.tap_fields:
            names = [self.tap_names[tap] for tap in group.taps]
            taps = np.stack([outputs[name] for name in names], axis=1)  # (n, L, T, W)
            if group.scales is None:
                stored[group.values.name] = to_float16(taps)
            else:
                stored[group.values.name], stored[group.scales.name] = to_int8(taps)
        return stored


def l2_normalize(values: np.ndarray) -> np.ndarray:
    """Rows of length 1; a zero row stays zero."""
    length = np.sqrt(np.sum(values * values, axis=-1, keepdims=True, dtype=np.float32))
    return (values / np.maximum(length, np.float32(1e-12))).astype(np.float32)


def to_int8(taps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(.., W) -> int8 of the same shape, and a float32 scale (..) per token.

    Companded by a square root: q = 127 sign(x) sqrt(|x| / max|x|). CLIP's tokens have a few
    channels ten times the rest, and linear steps would be spent on those.
    """
    values = taps.astype(np.float32)
    scales = np.maximum(np.abs(values).max(axis=-1), np.float32(1e-12))
    roots = np.sqrt(np.abs(values) / scales[..., None])
    quantized = np.rint(np.copysign(roots, values) * _LEVELS).astype(np.int8)
    return quantized, scales


def from_int8(quantized: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The inverse of `to_int8`: float32."""
    values = quantized.astype(np.float32)
    values *= np.abs(values)
    values *= (scales / np.float32(_LEVELS**2))[..., None]
    return values


def _tap_fields(tower: TowerRecord, dtype: TapDtype) -> list[TapField]:
    shapes: dict[tuple[int, int], list[int]] = {}
    for index, tap in enumerate(tower.taps):
        shapes.setdefault((tap.tokens, tap.width), []).append(index)
    stored = "float16" if dtype == "fp16" else "int8"
    found = []
    for (tokens, width), taps in shapes.items():
        name = f"taps_{tokens}x{width}"
        scales = None
        if dtype == "int8":
            scales = Field(f"scales_{tokens}x{width}", "float32", (len(taps), tokens))
        values = Field(name, stored, (len(taps), tokens, width))
        found.append(TapField(values, scales, tuple(taps)))
    return found


def _pre_width(tower: TowerRecord) -> int | None:
    if not tower.embedding_pre:
        return None
    for segment in tower.segments:
        for output in segment.outputs:
            if output.name == tower.embedding_pre:
                if len(output.shape) != 1:
                    raise IntegrityError(
                        f"{output.name} is {list(output.shape)}, should be one vector a picture",
                        where="manifest.json",
                        remedy="copy or export the bundle again",
                    )
                return output.shape[0]
    return None
