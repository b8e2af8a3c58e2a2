"""Pixels and plain image features of pictures, read once and kept."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from edgeladder.runtime.pictures.dataset import Picture
from tools.bench.peers.towers import image_features

View = Callable[[Image.Image], Tensor]
_BATCH = 32


def pixels_of(pictures: Sequence[Picture], view: View) -> Tensor:
    """(n, 3, S, S) in open_clip's evaluation view."""
    return torch.stack([view(Image.open(io.BytesIO(p.read())).convert("RGB")) for p in pictures])


class FeatureStore:
    """Unit embeddings of pictures by the locked image tower, which no text prompt changes.

    `seconds` and `cpu_seconds` are what a picture cost when it was computed, its decoding
    included, so that what was kept by an earlier run can be charged to a later one.
    """

    def __init__(self, clip: nn.Module, view: View, path: Path | None = None):
        """Take up what `path`, an .npz of the same model and data set, holds already."""
        self.clip, self.view, self._path = clip, view, path
        self._kept: dict[str, np.ndarray] = {}
        self.count, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        if path is not None and path.is_file():
            stored = np.load(path)
            self._kept = dict(zip(json.loads(str(stored["names"])), stored["rows"], strict=True))
            self.count, self.seconds, self.cpu_seconds = (
                int(stored["count"]),
                float(stored["seconds"]),
                float(stored["cpu_seconds"]),
            )

    def of(self, pictures: Sequence[Picture]) -> Tensor:
        """(n, D); those that are not kept yet are computed."""
        missing = [picture for picture in pictures if picture.path not in self._kept]
        if missing:
            self._compute(missing)
        return torch.from_numpy(np.stack([self._kept[picture.path] for picture in pictures]))

    def cost(self, pictures: int) -> tuple[float, float]:
        """Seconds and CPU seconds of so many pictures."""
        return pictures * self.seconds, pictures * self.cpu_seconds

    def _compute(self, missing: Sequence[Picture]) -> None:
        started, busy = time.perf_counter(), time.process_time()
        with torch.no_grad():
            for start in range(0, len(missing), _BATCH):
                part = missing[start : start + _BATCH]
                found = image_features(self.clip, pixels_of(part, self.view)).numpy()
                self._kept |= {p.path: row for p, row in zip(part, found, strict=True)}
        before, self.count = self.count, self.count + len(missing)
        spent = time.perf_counter() - started, time.process_time() - busy
        self.seconds = (before * self.seconds + spent[0]) / self.count
        self.cpu_seconds = (before * self.cpu_seconds + spent[1]) / self.count
        if self._path is not None:
            self._write(self._path)

    def _write(self, path: Path) -> None:
        partial = path.with_suffix(".part.npz")
        np.savez(
            partial,
            names=json.dumps(list(self._kept)),
            rows=np.stack(list(self._kept.values())),
            count=self.count,
            seconds=self.seconds,
            cpu_seconds=self.cpu_seconds,
        )
        partial.rename(path)
