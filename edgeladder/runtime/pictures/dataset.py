"""Labelled pictures: an image folder, the same in a .zip, or a CSV/JSONL of path and label.

data/dress/1.jpg                    class/picture, split by a fixed hash of the name
data/train/dress/1.jpg              with train/, validation/ or val/, test/ above
data/unlabelled/7.jpg               pictures without a label yet: of no class
labels.csv                          path,label[,split] with or without that header
labels.jsonl                        {"path": .., "label": .., "split": ..} a line
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeladder.core.errors import ConfigError, DataError
from edgeladder.runtime.pictures.class_names import (
    FILE,
    ClassName,
    parse_names,
    readable,
    suggestion,
)
from edgeladder.runtime.pictures.extensions import is_picture
from edgeladder.runtime.pictures.sources import (
    FileSource,
    FolderSource,
    Source,
    UnreadableError,
    ZipSource,
)
from edgeladder.runtime.pictures.tables import SUFFIXES, encodable, listing, read_rows

SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
UNLABELLED = "unlabelled"  # a folder of pictures without a label, beside the classes
TEST_SHARE = 0.25  # where no split folders say otherwise
_MAKE_DATA = (
    "give a folder or .zip of class/picture, or a .csv/.jsonl of path and label, with --data"
)


class Picture:
    """One labelled picture; its bytes are read when asked for."""

    __slots__ = ("_position", "_source", "label", "path", "split")

    def __init__(self, path: str, label: str, split: str | None, source: Source, position: int):
        self.path = path
        self.label = label
        self.split = split  # train, validation or test; None where the data do not say
        self._source = source
        self._position = position

    def read(self, most: int | None = None) -> bytes:
        """The file's bytes, at most so many. Raises UnreadableError."""
        return self._source.read(self._position, most)

    def __repr__(self) -> str:
        return f"Picture({self.path!r}, {self.label!r}, {self.split!r})"


@dataclass
class Dataset:
    """Pictures of some classes."""

    source: str  # where it was read from
    classes: list[str]  # folder names, sorted: the order of labels
    pictures: list[Picture]
    names: list[ClassName]  # readable, one per class
    templates: list[str] | None = None  # prompt templates, where classes.yaml gives them
    ignored: list[str] = field(default_factory=list)  # files that are no pictures by their name
    unlabelled: list[Picture] = field(default_factory=list)  # their label is empty

    @property
    def class_names(self) -> list[str]:
        """Readable names, one per class."""
        return [item.name for item in self.names]

    @property
    def has_splits(self) -> bool:
        """Whether the data say themselves what is for training."""
        return any(picture.split is not None for picture in self.pictures)

    def labels(self, pictures: Iterable[Picture], classes: list[str] | None = None) -> np.ndarray:
        """Class indices of pictures, (n,) int32; `classes` may be those of a trained adapter.

        Raises:
            DataError: a label is not among `classes`; the nearest is suggested.
        """
        known = self.classes if classes is None else classes
        position = {name: index for index, name in enumerate(known)}
        found = []
        for picture in pictures:
            if picture.label not in position:
                raise DataError(
                    f"label {picture.label!r} is not among the {len(known)} known classes",
                    where=f"{self.source}: {picture.path}",
                    remedy=f"{suggestion(picture.label, known)}rename the folder or label, train "
                    "with these classes, or name those to choose among with --classes",
                )
            found.append(position[picture.label])
        return np.array(found, np.int32)


def open_data(path: str | Path) -> Dataset:
    """Find the labelled pictures at `path`: a folder, a .zip or a .csv/.tsv/.jsonl file.

    Raises:
        DataError: nothing there, a class without pictures, or an unreadable list.
    """
    path = Path(path)
    if path.is_dir():
        return _arrange(FolderSource(path), names_beside=[path / FILE])
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return _table(path)
    if path.is_file() and zipfile.is_zipfile(path):
        beside = [path.with_name(f"{path.stem}.{FILE}"), path.with_name(FILE)]
        return _arrange(ZipSource(path), names_beside=beside)
    what = "not a folder, .zip, .csv or .jsonl" if path.exists() else "there are no pictures here"
    if path.suffix.lower() == ".zip" and path.exists():
        what = "not a .zip archive, or a truncated one"
    raise DataError(what, where=str(path), remedy=_MAKE_DATA)


def data_root(path: Path) -> Path:
    """The folder that pictures' paths are relative to: `path`, or the one folder that is in it.

    Raises:
        ConfigError: no folder; pictures in archives and tables cannot be moved.
    """
    if not path.is_dir():
        raise ConfigError(
            "only pictures in a folder can be moved",
            where=str(path),
            remedy="unpack the archive, or name the folder with --data",
        )
    return path / _wrapper(FolderSource(path))


def split(dataset: Dataset, shots: int | None, seed: int) -> tuple[list[Picture], list[Picture]]:
    """Pictures to train on and pictures to test on.

    With split folders: train/ and test/, or validation/ where there is no test/. Without: a
    quarter of the pictures, by a fixed hash of their names, so that a picture stays on its side
    when others are added. `shots` keeps that many training pictures per class, chosen by `seed`.

    Raises:
        DataError: nothing to train on for a class.
    """
    if dataset.has_splits:
        sides = {picture.split for picture in dataset.pictures}
        test_side = "test" if "test" in sides else "validation"
        train = [p for p in dataset.pictures if p.split in ("train", None)]
        test = [p for p in dataset.pictures if p.split == test_side]
    else:
        train, test = _hash_split(dataset)
    by_class: dict[str, list[Picture]] = {name: [] for name in dataset.classes}
    for picture in train:
        by_class[picture.label].append(picture)
    for name, pictures in by_class.items():
        if not pictures:
            raise DataError(
                f"class {name!r} has no training pictures",
                where=dataset.source,
                remedy=f"add pictures to train/{name}, or remove the class",
            )
    if shots is not None:
        train = [p for pictures in by_class.values() for p in _few(pictures, shots, seed)]
    return train, test


def _hash_split(dataset: Dataset) -> tuple[list[Picture], list[Picture]]:
    train: list[Picture] = []
    test: list[Picture] = []
    by_class: dict[str, list[Picture]] = {name: [] for name in dataset.classes}
    for picture in dataset.pictures:
        by_class[picture.label].append(picture)
    for pictures in by_class.values():
        values = [(_uniform(picture.path), picture) for picture in pictures]
        # a class small enough to fall wholly on the test side keeps one picture for training
        keeper = max(values, key=lambda item: item[0])[1] if values else None
        for value, picture in values:
            (test if value < TEST_SHARE and picture is not keeper else train).append(picture)
    return train, test


def _few(pictures: list[Picture], shots: int, seed: int) -> list[Picture]:
    chosen = sorted(pictures, key=lambda picture: _uniform(f"{seed}\0{picture.path}"))[:shots]
    return sorted(chosen, key=lambda picture: picture.path)


def _uniform(text: str) -> float:
    """A number in [0, 1) fixed by a text, the same on every machine and version."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _arrange(source: FolderSource | ZipSource, *, names_beside: list[Path]) -> Dataset:
    """Read split, class and picture out of relative names."""
    prefix = _wrapper(source)
    pictures: list[Picture] = []
    waiting: list[Picture] = []
    ignored: list[str] = []
    found = ""
    for position, name in enumerate(source.names):
        if name == prefix + FILE and isinstance(source, ZipSource):
            found = _member(source, position)
        below = name.removeprefix(prefix)  # `unlabelled/` may lie beside the one folder of all else
        parts = below.split("/")
        if parts[0] == UNLABELLED:
            if len(parts) > 1 and is_picture(name):
                waiting.append(Picture(below, "", None, source, position))
            continue
        part = SPLITS.get(parts[0].lower()) if len(parts) > 1 else None
        inner = parts[1:] if part else parts
        if len(inner) < 2 or not is_picture(name):
            if inner[-1] != FILE:
                ignored.append(name)
            continue
        pictures.append(Picture(below, inner[0], part, source, position))
    classes = _check_classes(source, prefix, pictures)
    where = f"{source.where}: {FILE}"
    for path in names_beside:
        if not found and path.is_file():
            found, where = listing(path), str(path)
    names, templates = parse_names(found, classes, where=where)
    return Dataset(source.where, classes, pictures, names, templates, ignored, waiting)


def _member(source: ZipSource, position: int) -> str:
    """The text of an archive's own classes.yaml."""
    try:
        return source.read(position).decode("utf-8", "replace")
    except UnreadableError as error:
        raise DataError(
            f"cannot read {source.names[position]}: {error}",
            where=source.where,
            remedy="copy the .zip again; it may be damaged",
        ) from error


def _wrapper(source: Source) -> str:
    """`top/` where everything lies in one folder that is neither a split nor a class."""
    tops = {name.split("/", 1)[0] for name in [*source.names, *source.folders] if "/" in name}
    tops |= {name for name in source.folders if "/" not in name}
    tops.discard(UNLABELLED)  # beside the one folder of everything
    if len(tops) != 1:
        return ""
    (top,) = tops
    below = [name[len(top) + 1 :] for name in source.names if name.startswith(top + "/")]
    if top.lower() in SPLITS or any(is_picture(name) and "/" not in name for name in below):
        return ""
    return top + "/" if any("/" in name for name in below) else ""


def _check_classes(source: Source, prefix: str, pictures: list[Picture]) -> list[str]:
    """Sorted class names; every class folder has pictures, every class can be trained."""
    found = {(picture.split, picture.label) for picture in pictures}
    for folder in source.folders:
        parts = folder[len(prefix) :].split("/") if folder.startswith(prefix) else [""]
        if UNLABELLED in (parts[0], folder.split("/", 1)[0]):
            continue
        part = SPLITS.get(parts[0].lower())
        inner = parts[1:] if part else parts
        if len(inner) == 1 and inner[0] and (part, inner[0]) not in found:
            raise DataError(
                f"class folder {folder!r} has no pictures",
                where=source.where,
                remedy="add pictures to it or remove the folder",
            )
    if not pictures:
        raise DataError("no pictures found", where=source.where, remedy=_MAKE_DATA)
    for label in {label for _, label in found}:
        if not encodable(label):  # the tokenizer and every record hold text
            raise DataError(
                f"the name of class folder {label!r} is not UTF-8",
                where=source.where,
                remedy="rename the folder; its pictures may be called as they are",
            )
    trained = {label for part, label in found if part in ("train", None)}
    for part, label in sorted(found, key=str):
        if trained and label not in trained:
            raise DataError(
                f"class {label!r} of {part}/ is unknown in train/",
                where=source.where,
                remedy=f"{suggestion(label, sorted(trained))}use the same folders in both",
            )
    return sorted({label for _, label in found})


def _table(path: Path) -> Dataset:
    """A CSV, TSV or JSONL of path and label."""
    rows = read_rows(path)
    source = FileSource([row[0] for row in rows], path.parent, str(path))
    pictures = [
        Picture(name, label, _split_name(part, path), source, position)
        for position, (name, label, part) in enumerate(rows)
    ]
    classes = sorted({picture.label for picture in pictures})
    beside = [path.with_name(f"{path.stem}.{FILE}"), path.with_name(FILE)]
    for names_file in beside:
        if names_file.is_file():
            names, templates = parse_names(listing(names_file), classes, where=str(names_file))
            return Dataset(str(path), classes, pictures, names, templates)
    return Dataset(str(path), classes, pictures, [readable(name) for name in classes])


def _split_name(text: str, path: Path) -> str | None:
    if text and text.lower() not in SPLITS:
        raise DataError(
            f"unknown split {text!r}",
            where=str(path),
            remedy=f"{suggestion(text, list(SPLITS))}use train, validation or test",
        )
    return SPLITS[text.lower()] if text else None
