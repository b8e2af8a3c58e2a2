"""A whole tower on an execution provider that is not the CPU's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core import disk
from edgeladder.core.files import storage_errors
from edgeladder.core.user_cache import user_cache
from edgeladder.runtime.towers.joined_tower import BATCH, joined_tower

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from edgeladder.core.bundle import Bundle, Side


class AcceleratedTower:
    """One session of a joined tower, opened for batches of one size.

    Engines are compiled for shapes: a fixed one is compiled once, and what is missing in a last
    batch is filled with copies of its last sample.
    """

    def __init__(
        self,
        bundle: Bundle,
        side: Side,
        provider: str,
        *,
        batch: int,
        threads: int,
        memory_bytes: int | None = None,
    ):
        """Join the tower where it is not yet, and open it.

        Args:
            provider: by name.
            batch: samples in every run.
            memory_bytes: that the provider may take on a GPU; None: no limit.

        Raises:
            ConfigError: this machine or environment has no such provider.
            StorageError: no space for the joined tower.
        """
        # here, because onnxruntime costs processes that only name a tower 30 MB
        from edgeladder.runtime.session import open_accelerated

        self.batch = batch
        path = joined_tower(bundle, side, user_cache() / "towers")
        engines = user_cache() / "engines" / f"{provider}-{path.stem}"
        with storage_errors(engines):
            disk.make_folders(engines)
        self._session: InferenceSession = open_accelerated(
            path,
            provider,
            threads=threads,
            sizes={BATCH: batch},
            folder=engines,
            memory_bytes=memory_bytes,
        )
        self._source: str = self._session.get_inputs()[0].name

    def run(self, samples: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Outputs by name, (n, ..) each, of (n, ..) samples; at most `batch` of them."""
        count = len(samples)
        missing = self.batch - count
        if missing:
            samples = np.concatenate([samples, np.repeat(samples[-1:], missing, axis=0)])
        found = self._session.run(list(names), {self._source: samples})
        return {name: array[:count] for name, array in zip(names, found, strict=True)}
