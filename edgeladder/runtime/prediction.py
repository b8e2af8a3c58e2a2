"""Labels for pictures in files, folders and archives; one bad picture never stops the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeladder.core.errors import ConfigError, DataError
from edgeladder.core.inference import Prediction, Predictions
from edgeladder.runtime.classifier import Classifier, InferenceSizes, probabilities, top_labels
from edgeladder.runtime.pictures.dataset import Picture
from edgeladder.runtime.pictures.sources import UnreadableError, ZipSource
from edgeladder.runtime.pictures.unlabelled import list_pictures, open_pictures

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle

Progress = Callable[[int, int], None]  # pictures done, and their number


def predict(
    run: Path,
    paths: Sequence[str | Path],
    *,
    bundle: Bundle | Path | None = None,
    top: int = 1,
    threads: int | None = None,
    sizes: InferenceSizes | None = None,
    classes: str | None = None,
) -> Predictions:
    """Labels and probabilities for every picture, in the order given, in this process.

    Args:
        run: run directory, or a folder with an adapter.
        paths: pictures, folders searched for pictures, .zip archives of pictures.
        bundle: None: the one the run remembers.
        top: labels per picture; at most the number of classes.
        threads: of onnxruntime; None: all cores.
        sizes: None: the image tower whole.
        classes: to choose among (`vocabulary.asked_classes`); None: those it was trained on.

    Returns:
        One prediction per picture. One that cannot be read has no labels and its reason as
        `error`; the others are not affected.

    Raises:
        ConfigError: no adapter or bundle, no path was given, or no such classes.
        DataError: a folder or archive without pictures, or not one picture could be read.
        IntegrityError: the adapter belongs to another bundle.
    """
    pictures = wanted_pictures(paths, top)
    with Classifier.open(run, bundle, threads=threads, sizes=sizes, classes=classes) as classifier:
        return classify(classifier, pictures, top)


def classify(
    classifier: Classifier, pictures: Sequence[Picture], top: int, progress: Progress | None = None
) -> Predictions:
    """Predictions for all pictures.

    Raises:
        DataError: not one picture could be read.
    """
    found: list[Prediction] = []
    for item in predictions(classifier, pictures, top):
        found.append(item)
        if progress is not None:
            progress(len(found), len(pictures))
    if all(item.error for item in found):
        raise DataError(
            f"none of the {len(found)} pictures can be read: {found[0].error}",
            where=found[0].path,
            remedy="name JPEG or PNG files",
        )
    return Predictions(predictions=found, asked=classifier.run.asked())


def wanted_pictures(paths: Sequence[str | Path], top: int) -> list[Picture]:
    """The pictures at `paths`, of each of which `top` labels are asked.

    Raises:
        ConfigError: no path, or fewer than one label.
        DataError: a folder or archive without pictures.
    """
    if top < 1:
        raise ConfigError(f"--top {top} is less than 1", remedy="ask for 1 label or more")
    if not paths:
        raise ConfigError("no pictures were named", remedy="name picture files or folders")
    return list_pictures(paths)


def picture_bytes(path: str) -> bytes:
    """The bytes of a picture as `list_pictures` names it: a file, or `archive.zip/member`.

    Raises:
        DataError: it is not there, or cannot be read.
    """
    try:
        for folder in Path(path).parents:
            if folder.suffix.lower() == ".zip" and folder.is_file():
                source, name = ZipSource(folder), path[len(str(folder)) + 1 :]
                if name in source.names:
                    return source.read(source.names.index(name))
        return open_pictures([path])[0].read()
    except UnreadableError as error:
        raise DataError(str(error), where=path, remedy="run the command again") from error


def predictions(
    classifier: Classifier, pictures: Iterable[Picture], top: int
) -> Iterator[Prediction]:
    """One prediction per picture, in order, `sizes.at_once` pictures in memory at a time."""
    waiting: list[_Waiting] = []
    for picture in pictures:
        waiting.append((picture.path, *_square(classifier, picture)))
        if sum(square is not None for _, square, _ in waiting) == classifier.sizes.at_once:
            yield from _answer(classifier, waiting, top)
            waiting = []
    yield from _answer(classifier, waiting, top)


_Waiting = tuple[str, "np.ndarray | None", "str | None"]  # path, square, error


def _square(classifier: Classifier, picture: Picture) -> tuple[np.ndarray | None, str | None]:
    try:
        return classifier.square(classifier.read(picture)), None
    except UnreadableError as error:
        return None, str(error)


def _answer(classifier: Classifier, waiting: list[_Waiting], top: int) -> Iterator[Prediction]:
    squares = [square for _, square, _ in waiting if square is not None]
    if squares:
        logits, scores = classifier.answers(squares)
        shares = iter(probabilities(logits))
        known = iter([None] * len(squares) if scores is None else scores.tolist())
    for path, square, error in waiting:
        if square is None:
            yield Prediction(path=path, labels=[], error=error)
            continue
        score = next(known)
        yield Prediction(
            path=path,
            labels=top_labels(next(shares), classifier.classes, top),
            known=score,
            unknown=classifier.is_unknown(score),
        )
