"""Whether a deployed file says what `predict` says: class logits on the run's own pictures.

Probabilities would not tell: where one class is certain, the others' are all zero to their last
digit, whatever the weights. Logits are compared, which the file computes before its softmax but
does not give out; so are the squares that a file with its own resizing makes of whole pictures. For
the check alone they are made outputs by bytes after the file's end, which protobuf merges into the
graph, and which are cut off again: no second copy of the weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgeladder.core.errors import EdgeLadderError
from edgeladder.core.inference import WHOLE_SIDE
from edgeladder.core.onnx_graph import output_after_the_end
from edgeladder.core.protobuf import FLOAT
from edgeladder.runtime.classifier import Classifier
from edgeladder.runtime.deploy_graph import PICTURE, SQUARE
from edgeladder.runtime.pictures.dataset import open_data
from edgeladder.runtime.pictures.decode import open_picture, orientation, square_of, upright
from edgeladder.runtime.pictures.drawn import PICTURES, drawn_pictures
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.runtime.run_folder import run_request
from edgeladder.runtime.session import open_plain

Array = np.ndarray

WHOLE_PICTURES = 3  # that a file's own resizing is compared on


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
    squares = list(_squares(classifier))
    if squares:
        return Probe(np.stack(squares), "data")
    return Probe(drawn_pictures(classifier.bundle.manifest.preprocess.size), "synthetic")


def whole_pictures(classifier: Classifier) -> list[Array]:
    """Upright pictures (H, W, 3) uint8 of several sides: the run's, or drawn ones.

    None is longer than `WHOLE_SIDE`: what a file's resizing takes of memory grows with them.
    """
    found = []
    sizes = classifier.sizes
    for content in _contents(classifier, WHOLE_PICTURES):
        try:
            with open_picture(
                content, WHOLE_SIDE, max_pixels=sizes.max_pixels, max_bytes=sizes.picture_bytes
            ) as image:
                turn = orientation(image)
                image.thumbnail((WHOLE_SIDE, WHOLE_SIDE))
                found.append(upright(image, turn))
        except UnreadableError:
            continue
    if found:
        return found
    side = classifier.bundle.manifest.preprocess.size
    larger, smaller = drawn_pictures(min(WHOLE_SIDE, 2 * side)), drawn_pictures(side // 2 + 1)
    return [larger[0][: side + 1], larger[1][:, : side + side // 2], smaller[2][:, : side // 3 + 1]]


def _squares(classifier: Classifier) -> Iterator[Array]:
    for content in _contents(classifier, PICTURES):
        try:
            yield classifier.square(content)
        except UnreadableError:
            continue


def _contents(classifier: Classifier, most: int) -> Iterator[bytes]:
    """Files of pictures from all over the run's data; none where it is not here."""
    data = run_request(classifier.run.folder).get("data")
    try:
        pictures = open_data(data).pictures if data else []
    except (EdgeLadderError, OSError):  # a box keeps its pictures; the run may have moved
        return
    for index in np.linspace(0, len(pictures) - 1, min(most, len(pictures))).astype(int):
        try:
            yield pictures[index].read()
        except UnreadableError:
            continue


def differences(
    path: Path,
    pictures: Sequence[Array] | Array,
    expected: Mapping[str, Array],
    hidden: Sequence[str],
    threads: int,
) -> dict[str, float]:
    """The largest differences between what a file gives and what was expected of it, by name.

    Args:
        path: the file; as it was afterwards.
        pictures: (H, W, 3) uint8 each, asked about one by one.
        expected: tensors of the graph, a row (of any shape) for each picture.
        hidden: those of them that the file does not give out, float32.
        threads: of onnxruntime.
    """
    size = path.stat().st_size
    with open(path, "ab") as stream:
        for name in hidden:
            stream.write(output_after_the_end(name, FLOAT, ["N", *expected[name].shape[1:]]))
    try:
        session = open_plain(path, threads)
        given = [session.run(list(expected), {PICTURE: item[None]}) for item in pictures]
        del session
    finally:
        with open(path, "rb+") as stream:
            stream.truncate(size)
            os.fsync(stream.fileno())
    return {
        name: float(np.abs(np.stack([rows[place][0] for rows in given]) - wanted).max())
        for place, (name, wanted) in enumerate(expected.items())
    }


def resize_difference(path: Path, classifier: Classifier, threads: int) -> float:
    """The largest difference, in grey levels, of a file's squares and predict's."""
    pictures = whole_pictures(classifier)
    preprocess = classifier.bundle.manifest.preprocess
    squares = [square_of(Image.fromarray(picture), preprocess) for picture in pictures]
    planes = np.stack(squares).transpose(0, 3, 1, 2).astype(np.float32)
    return differences(path, pictures, {SQUARE: planes}, [SQUARE], threads)[SQUARE]
