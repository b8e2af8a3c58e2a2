"""Pictures without a label: named one by one, in a folder, or in a .zip."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from edgeladder.core.errors import DataError
from edgeladder.runtime.pictures.dataset import Dataset, Picture
from edgeladder.runtime.pictures.extensions import is_picture
from edgeladder.runtime.pictures.sources import FileSource, FolderSource, ZipSource


def with_unlabelled(dataset: Dataset, path: str | None, *, use: bool) -> Dataset:
    """The data with the pictures without a label that may teach.

    Args:
        dataset: with those of its own folder `unlabelled/`.
        path: folder or .zip that takes their place; None: none does.
        use: whether any may.

    Raises:
        DataError: nothing there, or no picture in it.
    """
    if not use or path is None:
        return dataset if use else replace(dataset, unlabelled=[])
    if not Path(path).exists():
        raise DataError(
            "there is no folder or .zip here",
            where=path,
            remedy="name one with --unlabelled, or leave it out",
        )
    return replace(dataset, unlabelled=list_pictures([path]))


def open_pictures(paths: Iterable[str | Path]) -> list[Picture]:
    """Unlabelled pictures by path; folders are searched. For `predict`.

    Raises:
        DataError: a folder without pictures.
    """
    found: list[str] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(str(path))
            continue
        inside = [name for name in FolderSource(path).names if is_picture(name)]
        if not inside:
            raise DataError(
                "no pictures in this folder", where=str(path), remedy="name picture files"
            )
        found.extend(str(path / name) for name in inside)
    source = FileSource(found, Path(), "the pictures named")
    return [Picture(name, "", None, source, index) for index, name in enumerate(found)]


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
                if is_picture(name)
            ]
            if not inside:
                raise DataError(
                    "no pictures in this archive", where=str(path), remedy="name picture files"
                )
            found += inside
        else:
            found += open_pictures([path])
    return found
