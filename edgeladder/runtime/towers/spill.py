"""Tensors of one group on disk between segments: plain files, written once in order, read back.

Not mapped: a mapped file counts against the budget, a read one only while it is looked at.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.files import storage_errors
from edgeladder.runtime.float16 import from_float16, to_float16

_SAFE = 32768.0  # well inside float16's largest number, 65504


class SpillFile:
    """One tensor of a group: samples of one shape, appended in order."""

    def __init__(self, path: Path, *, float16: bool):
        """Args: float16: keep float32 so, which moves a hidden state by 2^-11 of itself."""
        self.path = path
        self._float16 = float16
        self._shape: tuple[int, ...] = ()
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
        self._stored: np.dtype[Any] = np.dtype(np.float32)
        self._scales: list[float] = []  # per sample: a power of two, 1 unless it would overflow
        with storage_errors(path):
            self._descriptor = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )
            # without a name it is gone with the process, however that ends
            self.path.unlink()

    def append(self, samples: np.ndarray) -> None:
        """Add (n, ..) samples.

        Raises:
            StorageError: the disk is full.
        """
        self._shape, self._dtype = samples.shape[1:], samples.dtype
        narrow = self._float16 and samples.dtype == np.float32
        self._stored = np.dtype(np.float16) if narrow else samples.dtype
        if narrow:
            samples = self._narrowed(samples)
        data = np.ascontiguousarray(samples).reshape(-1).view(np.uint8).data
        with storage_errors(self.path):
            while data:
                data = data[os.write(self._descriptor, data) :]

    def _narrowed(self, samples: np.ndarray) -> np.ndarray:
        axes = tuple(range(1, samples.ndim))
        largest = np.maximum(samples.max(axis=axes), -samples.min(axis=axes))
        excess = np.maximum(largest / _SAFE, 1.0)
        scales = np.exp2(np.ceil(np.log2(excess))).astype(np.float32)
        self._scales.extend(scales.tolist())
        if (scales > 1).any():
            samples = samples / scales.reshape(-1, *[1] * (samples.ndim - 1))
        return to_float16(samples)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples start to stop, in the dtype they came in."""
        samples = np.empty((stop - start, *self._shape), self._stored)
        if samples.nbytes:
            size = samples.nbytes // (stop - start)
            flat = samples.reshape(-1).view(np.uint8)
            os.preadv(self._descriptor, [flat.data], start * size)
        if self._stored == self._dtype:
            return samples
        samples = from_float16(samples)
        scales = np.array(self._scales[start:stop], np.float32)
        if (scales > 1).any():
            samples *= scales.reshape(-1, *[1] * (samples.ndim - 1))
        return samples

    def discard(self) -> None:
        """Free the file's disk space."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
