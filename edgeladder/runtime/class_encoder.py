"""Class names through the text tower and the ladder, whole classes at a time.

What the tower leaves of a group of prompts becomes its classes' embeddings before the next group
begins: ten thousand names take no more memory than a few hundred, their embeddings apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgeladder.runtime.cache.layout import EMBEDDING, l2_normalize
from edgeladder.runtime.logits import ClassEmbeddings
from edgeladder.runtime.towers.runner import ArraySamples, TowerRunner, TowerSizes
from edgeladder.runtime.towers.tokens import Tokenizer

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.manifest import Manifest
    from edgeladder.runtime.logits import ClassEncoder

Array = np.ndarray


def encode_classes(
    bundle: Bundle,
    encoder: ClassEncoder,
    prompts: Sequence[Sequence[str]],
    sizes: TowerSizes,
    chunk: int,
    work: Path,
    on_batch: Callable[[float], None] | None = None,
) -> ClassEmbeddings:
    """Every class as CLIP and as the ladder embed it, its prompts averaged.

    Args:
        encoder: the ladder.
        prompts: of each class.
        sizes: of the text tower; `group` prompts of whole classes pass it at a time.
        chunk: classes that the ladder encodes at a time.
        work: folder for hidden states.
        on_batch: called between the tower's batches; may raise to stop.
    """
    counts = [len(texts) for texts in prompts]
    # the tokenizer's vocabulary is some ten megabytes: gone before the tower runs
    tokens = Tokenizer.from_bundle(bundle).encode([p for texts in prompts for p in texts])
    runner = TowerRunner(bundle, "text", sizes, work)
    zero_shot, tuned, done = [], [], 0
    for classes in _groups(counts, sizes.group):
        own = counts[classes]
        stop = done + sum(own)
        outputs = _means(_run(runner, tokens[done:stop], on_batch), own)
        done = stop
        embedding = l2_normalize(outputs[EMBEDDING])
        taps = grouped(bundle.manifest, "text", outputs)
        for start in range(0, len(embedding), chunk):
            window = slice(start, start + chunk)
            rows = [np.ascontiguousarray(group[:, :, window]) for group in taps]
            tuned.append(encoder.encode_text(rows, embedding[window]))
        zero_shot.append(embedding)
    runner.close()
    return ClassEmbeddings(np.concatenate(zero_shot), np.concatenate(tuned))


def grouped(
    manifest: Manifest, side: Literal["image", "text"], outputs: dict[str, Array]
) -> list[Array]:
    """A tower's taps by name (n, T, W) -> what the ladder reads: one (L, T, n, W) per tap group."""
    tower = getattr(manifest, side)
    return [
        np.ascontiguousarray(
            np.stack([outputs[tower.taps[k].name].swapaxes(0, 1) for k in group.taps])
        )
        for group in manifest.ladder.groups
        if group.side == side
    ]


def _groups(counts: Sequence[int], most: int) -> Iterator[slice]:
    """Classes whose prompts are `most` together, and one class at least."""
    start, held = 0, 0
    for place, count in enumerate(counts):
        if held and held + count > most:
            yield slice(start, place)
            start, held = place, 0
        held += count
    yield slice(start, len(counts))


def _run(
    runner: TowerRunner, tokens: Array, on_batch: Callable[[float], None] | None
) -> dict[str, Array]:
    """The tower's outputs of some prompts by name, embeddings at unit length."""
    parts: list[dict[str, Array]] = []
    runner.run(ArraySamples(tokens), lambda start, outputs: parts.append(dict(outputs)), on_batch)
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found[EMBEDDING] = l2_normalize(np.asarray(found[EMBEDDING], np.float32))
    return found


def _means(outputs: dict[str, Array], counts: Sequence[int]) -> dict[str, Array]:
    """Means over each class's prompts: (sum of counts, ..) -> (C, ..) float32."""
    ends = np.cumsum(counts)
    pairs = list(zip(ends - counts, ends, strict=True))
    return {
        name: np.stack([np.asarray(v[a:b], np.float32).mean(axis=0) for a, b in pairs])
        for name, v in outputs.items()
    }
