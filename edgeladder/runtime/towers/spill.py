"""Tensors of one group on disk between segments: plain files, written once in order, read back.

Not mapped: a mapped file counts against the budget, a read one only while it is looked at. Bit for
bit as they came: a tower that is streamed gives what a whole one gives.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.files import storage_errors


class SpillFile:
    """One tensor of a group: samples of one shape, appended in order."""

    def __init__(self, path: Path):
        self.path = path
        self._shape: tuple[int, ...] = ()
        self._dtype: np.dtype[Any] = np.dtype(np.float32)
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
        data = np.ascontiguousarray(samples).reshape(-1).view(np.uint8).data
        with storage_errors(self.path):
            while data:
                data = data[os.write(self._descriptor, data) :]

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples start to stop, as they came."""
        samples = np.empty((stop - start, *self._shape), self._dtype)
        if samples.nbytes:
            size = samples.nbytes // (stop - start)
            flat = samples.reshape(-1).view(np.uint8)
            os.preadv(self._descriptor, [flat.data], start * size)
        return samples

    def discard(self) -> None:
        """Free the file's disk space."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
