"""Labels for pictures in files, folders and archives; one bad picture never stops the rest."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.errors import ConfigError, DataError
from edgeladder.runtime.classifier import BATCH, Classifier, probabilities, top_labels
from edgeladder.runtime.pictures.dataset import EXTENSIONS, Picture, open_pictures
from edgeladder.runtime.pictures.decode import decode_square
from edgeladder.runtime.pictures.sources import UnreadableError, ZipSource

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle
    from edgeladder.core.manifest import PreprocessRecord


def predict(
    run: Path,
    paths: Sequence[str | Path],
    *,
    bundle: Bundle | Path | None = None,
    top: int = 1,
    threads: int | None = None,
) -> dict[str, Any]:
    """Labels and probabilities for every picture, in the order given.

    Args:
        run: run directory, or a folder with an adapter.
        paths: pictures, folders searched for pictures, .zip archives of pictures.
        bundle: None: the one the run remembers.
        top: labels per picture; at most the number of classes.
        threads: of onnxruntime; None: all cores.

    Returns:
        `predictions`: [{`path`, `labels`: [{`label`, `probability`}], `error`}]. A picture that
        cannot be read has no labels and its reason as `error`; the others are not affected.

    Raises:
        ConfigError: no adapter or bundle, or no path was given.
        DataError: a folder or archive without pictures, or not one picture could be read.
        IntegrityError: the adapter belongs to another bundle.
    """
    if top < 1:
        raise ConfigError(f"--top {top} is less than 1", remedy="ask for 1 label or more")
    if not paths:
        raise ConfigError("no pictures were named", remedy="name picture files or folders")
    pictures = list_pictures(paths)
    with Classifier.open(run, bundle, threads=threads) as classifier:
        found = list(predictions(classifier, pictures, top))
    if all(item["error"] for item in found):
        raise DataError(
            f"none of the {len(found)} pictures can be read: {found[0]['error']}",
            where=found[0]["path"],
            remedy="name JPEG or PNG files",
        )
    return {"predictions": found}


def list_pictures(paths: Iterable[str | Path]) -> list[Picture]:
    """The pictures at `paths`, archives opened; a member is named `archive.zip/member`.

    Raises:
        DataError: a folder or archive without pictures.
    """
    found: list[Picture] = []
    for path in map(Path, paths):
        if path.is_file() and path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
            source = ZipSource(path)
            inside = [
                Picture(f"{path}/{name}", "", None, source, position)
                for position, name in enumerate(source.names)
                if Path(name).suffix.lower() in EXTENSIONS
            ]
            if not inside:
                raise DataError(
                    "no pictures in this archive", where=str(path), remedy="name picture files"
                )
            found += inside
        else:
            found += open_pictures([path])
    return found


def predictions(
    classifier: Classifier, pictures: Iterable[Picture], top: int
) -> Iterator[dict[str, Any]]:
    """One prediction per picture, in order, `BATCH` pictures in memory at a time."""
    preprocess = classifier.bundle.manifest.preprocess
    waiting: list[tuple[str, np.ndarray | None, str | None]] = []
    for picture in pictures:
        waiting.append((picture.path, *_square(picture, preprocess)))
        if sum(square is not None for _, square, _ in waiting) == BATCH:
            yield from _answer(classifier, waiting, top)
            waiting = []
    yield from _answer(classifier, waiting, top)


def _square(picture: Picture, preprocess: PreprocessRecord) -> tuple[np.ndarray | None, str | None]:
    try:
        return decode_square(picture.read(), preprocess), None
    except UnreadableError as error:
        return None, str(error)


def _answer(
    classifier: Classifier, waiting: list[tuple[str, np.ndarray | None, str | None]], top: int
) -> Iterator[dict[str, Any]]:
    squares = [square for _, square, _ in waiting if square is not None]
    shares = iter(probabilities(classifier.logits(np.stack(squares))) if squares else ())
    for path, square, error in waiting:
        labels = [] if square is None else top_labels(next(shares), classifier.classes, top)
        yield {"path": path, "labels": labels, "error": error}
