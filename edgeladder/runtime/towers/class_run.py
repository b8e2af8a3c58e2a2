"""One pass over class names: prompts through the text tower, averaged per class, cached."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.runtime.cache.layout import EMBEDDING, l2_normalize
from edgeladder.runtime.cache.store import ActivationCache, sample_key
from edgeladder.runtime.towers.runner import ArraySamples, TowerRunner, TowerSizes
from edgeladder.runtime.towers.tokens import Tokenizer

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.runtime.towers.picture_run import Progress


class ClassRun:
    """One pass over the classes: prompts through the text tower, averaged per class."""

    def __init__(
        self,
        bundle: Bundle,
        cache: ActivationCache,
        sizes: TowerSizes,
        workdir: Path,
        on_group: Callable[[], None] | None,
    ):
        self.new = self.reused = 0
        self._bundle = bundle
        self._sizes = sizes
        self._on_group = on_group or (lambda: None)
        self._cache = cache
        self._runner = TowerRunner(bundle, "text", sizes, workdir)

    def run(self, prompts: list[list[str]], progress: Progress | None) -> list[bytes]:
        """A key per class."""
        keys = [prompts_key(texts) for texts in prompts]
        missing = {key: texts for key, texts in zip(keys, prompts, strict=True)}
        missing = {key: texts for key, texts in missing.items() if key not in self._cache}
        self.reused = len(prompts) - len(missing)
        with self._cache.writing(), contextlib.closing(self._runner):
            for block in _blocks(list(missing.items()), self._sizes.group):
                self._run_block(block)
                self.new += len(block)
                if progress is not None:
                    progress(self.reused + self.new, len(prompts), "class names")
                self._on_group()
        return keys

    def _run_block(self, block: list[tuple[bytes, list[str]]]) -> None:
        # the tokenizer's vocabulary is some ten megabytes: gone before the tower runs
        tokens = Tokenizer.from_bundle(self._bundle).encode(
            [t for _, texts in block for t in texts]
        )
        mean = _ClassMean([len(texts) for _, texts in block], [key for key, _ in block])
        self._runner.run(
            ArraySamples(tokens), lambda start, outputs: mean.add(outputs, self._cache.put)
        )
        self._cache.flush()


def prompts_key(texts: Sequence[str]) -> bytes:
    """The cache key of a class's averaged prompts."""
    return sample_key(hashlib.sha256(json.dumps(list(texts)).encode()).digest())


def _blocks(
    items: list[tuple[bytes, list[str]]], size: int
) -> Iterator[list[tuple[bytes, list[str]]]]:
    """Whole classes of at most `size` prompts together, at least one class."""
    block: list[tuple[bytes, list[str]]] = []
    prompts = 0
    for item in items:
        if block and prompts + len(item[1]) > size:
            yield block
            block, prompts = [], 0
        block.append(item)
        prompts += len(item[1])
    if block:
        yield block


class _ClassMean:
    """Averages a class's prompts: taps as they are, embeddings normalised first.

    As CLIP's prompt ensembling does (arXiv:2103.00020, section 3.1.4).
    """

    def __init__(self, counts: list[int], keys: list[bytes]):
        self._counts = counts
        self._keys = keys
        self._class = 0
        self._seen = 0
        self._sums: dict[str, np.ndarray] = {}

    def add(
        self,
        outputs: dict[str, np.ndarray],
        put: Callable[[list[bytes], dict[str, np.ndarray]], None],
    ) -> None:
        """Take the next prompts' outputs, (n, ..) each; a class that is complete is put."""
        values = {name: array.astype(np.float32) for name, array in outputs.items()}
        values[EMBEDDING] = l2_normalize(values[EMBEDDING])
        for row in range(len(values[EMBEDDING])):
            for name, array in values.items():
                before = self._sums.get(name)
                self._sums[name] = array[row] if before is None else before + array[row]
            self._seen += 1
            if self._seen == self._counts[self._class]:
                means = {
                    name: (total / np.float32(self._seen))[None]
                    for name, total in self._sums.items()
                }
                put([self._keys[self._class]], means)
                self._class, self._seen, self._sums = self._class + 1, 0, {}
