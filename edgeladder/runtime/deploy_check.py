"""Whether a deployed file says what `predict` says: class logits on the run's own pictures.

Probabilities would not tell: where one class is certain, the others' are all zero to their last
digit, whatever the weights. Logits are compared, which the file computes before its softmax but
does not give out. For the check alone they are made an output by bytes after the file's end, which
protobuf merges into the graph, and which are cut off again: no second copy of the weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.onnx_graph import Graph, output_after_the_end
from edgeladder.core.protobuf import FLOAT
from edgeladder.runtime.classifier import Classifier, run_request
from edgeladder.runtime.deploy_graph import KNOWN, PICTURE, logits_of
from edgeladder.runtime.pictures.dataset import open_data
from edgeladder.runtime.pictures.drawn import PICTURES, drawn_pictures
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.runtime.session import open_plain

Array = np.ndarray


@dataclass(frozen=True)
class Probe:
    """Evaluation views to compare on.

    Attributes:
        squares: (n, S, S, 3) uint8.
        origin: `data`: pictures the run knows; `synthetic`: drawn, because it knows none here.
    """

    squares: Array
    origin: str


def probe(classifier: Classifier) -> Probe:
    """Pictures from all over the run's data, or structured ones where they are not here."""
    squares = list(_own_pictures(classifier))
    if squares:
        return Probe(np.stack(squares), "data")
    return Probe(drawn_pictures(classifier.bundle.manifest.preprocess.size), "synthetic")


def _own_pictures(classifier: Classifier) -> Iterator[Array]:
    data = run_request(classifier.run.folder).get("data")
    try:
        pictures = open_data(data).pictures if data else []
    except (EdgeLadderError, OSError):  # a box keeps its pictures; the run may have moved
        return
    for index in np.linspace(0, len(pictures) - 1, min(PICTURES, len(pictures))).astype(int):
        try:
            yield classifier.square(pictures[index].read())
        except UnreadableError:
            continue


@dataclass(frozen=True)
class Differences:
    """The largest ones between a file and what was expected of it."""

    logits: float
    known: float | None  # None: it has no such output


def difference(
    path: Path,
    graph: Graph,
    squares: Array,
    expected: tuple[Array, Array | None],
    threads: int,
) -> Differences:
    """The largest differences between the file's logits and scores and those expected.

    Args:
        path: what `graph` was written to; as it was afterwards.
        graph: names the logits.
        squares: (n, S, S, 3) uint8, asked about one by one.
        expected: logits (n, C), and how known each is, (n,), where the file says it.
        threads: of onnxruntime.
    """
    name, (logits, known) = logits_of(graph), expected
    names = [name] if known is None else [name, KNOWN]
    size = path.stat().st_size
    with open(path, "ab") as stream:
        stream.write(output_after_the_end(name, FLOAT, ["N", logits.shape[1]]))
    try:
        session = open_plain(path, threads)
        given = [session.run(names, {PICTURE: square[None]}) for square in squares]
        del session
    finally:
        with open(path, "rb+") as stream:
            stream.truncate(size)
            os.fsync(stream.fileno())
    apart = float(np.abs(np.stack([rows[0][0] for rows in given]) - logits).max())
    if known is None:
        return Differences(apart, None)
    return Differences(apart, float(np.abs(np.stack([rows[1][0] for rows in given]) - known).max()))
