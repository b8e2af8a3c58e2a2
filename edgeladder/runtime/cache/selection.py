"""Which cached samples a run uses: what precompute hands to train and evaluate.

Keys, not places: a selection stays valid when the cache grows. Small enough to be loaded whole,
16 bytes a picture and view; the pictures are never read again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeladder.core.errors import IntegrityError
from edgeladder.core.tensors import TensorFile, write_tensors
from edgeladder.runtime.cache.layout import KEY_BYTES, TapDtype

_TENSORS = ("train_keys", "train_labels", "test_keys", "test_labels", "text_keys")
_LATER_KEYS = ("unlabelled_keys",)  # what selections of older versions lack: none of them
_TEXTS = ("classes", "class_names", "templates", "dtype", "skipped", "aliases")
_LATER = {"arithmetic": ""}  # what selections of older versions lack


@dataclass
class Selection:
    """Cache keys and labels of the samples of a run; keys are (.., KEY_BYTES) uint8."""

    train_keys: np.ndarray  # (views + 1, n, KEY_BYTES); view 0 is the evaluation view
    train_labels: np.ndarray  # (n,) int32
    test_keys: np.ndarray  # (m, KEY_BYTES)
    test_labels: np.ndarray  # (m,) int32
    text_keys: np.ndarray  # (C, KEY_BYTES), one per class
    classes: list[str]  # folder names, in the order of labels
    class_names: list[str]  # readable
    templates: list[str]
    dtype: TapDtype = "fp16"  # of the stores the keys are found in
    skipped: list[dict[str, str]] = field(default_factory=list)  # path and reason
    aliases: list[list[str]] = field(default_factory=list)  # further names per class, if any
    arithmetic: str = ""  # of the provider in whose store the pictures are; empty: the CPU's
    # (u, KEY_BYTES), of other pictures than those that train or test
    unlabelled_keys: np.ndarray = field(default_factory=lambda: np.empty((0, KEY_BYTES), np.uint8))

    @property
    def views(self) -> int:
        """Augmented views per training picture."""
        return len(self.train_keys) - 1

    def without_pictures(self) -> Selection:
        """Labels and what is said of the classes: a reader that was opened knows the places."""
        keys = self.train_keys[:, :0].copy(), self.test_keys[:0].copy()
        return replace(self, train_keys=keys[0], test_keys=keys[1])

    def with_labels(self, labels: np.ndarray) -> Selection:
        """Unlabelled pictures that were given a label, after the others that train.

        Args:
            labels: of each unlabelled picture (u,); -1: none. In every view they are as they are.
        """
        rows = np.flatnonzero(labels >= 0)
        keys = np.broadcast_to(self.unlabelled_keys[rows], (self.views + 1, len(rows), KEY_BYTES))
        return replace(
            self,
            train_keys=np.concatenate([self.train_keys, keys], axis=1),
            train_labels=np.concatenate([self.train_labels, labels[rows].astype(np.int32)]),
        )

    def save(self, path: Path) -> None:
        """Write atomically. Raises StorageError."""
        texts = {name: json.dumps(getattr(self, name)) for name in (*_TEXTS, *_LATER)}
        names = (*_TENSORS, *(name for name in _LATER_KEYS if len(getattr(self, name))))
        write_tensors(Path(path), {name: getattr(self, name) for name in names}, texts)

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read what `save` wrote.

        Raises:
            IntegrityError: missing, or not a selection.
        """
        try:
            stored = TensorFile(path)
            if not stored.intact():
                raise ValueError("its checksum is not the one it was written with")
            texts = {name: json.loads(stored.metadata[name]) for name in _TEXTS}
            for name, value in _LATER.items():
                texts[name] = json.loads(stored.metadata.get(name, json.dumps(value)))
            names = (*_TENSORS, *(name for name in _LATER_KEYS if name in stored))
            tensors: dict[str, Any] = {name: stored[name] for name in names}
        except (IntegrityError, KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"cannot read the run's selection of pictures: {error}",
                where=str(path),
                remedy="start the run again with `edgeladder train`; the cache is reused",
            ) from error
        return cls(**tensors, **texts)


def stack_keys(keys: list[bytes]) -> np.ndarray:
    """(n, KEY_BYTES) uint8."""
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES)
