"""A folder in which a person sorts suggested pictures into classes, and what was sorted.

    to-label/001-IMG_0817.jpg       a link to the picture (a copy where it lies in an archive)
    to-label/rose/                  a folder for every known class, and any that a person makes
    to-label/.suggested.json        what EdgeLadder put there

A picture is labelled by moving its link into a class folder. What stays on top has no label yet.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeladder.core import disk
from edgeladder.core.errors import ConfigError
from edgeladder.core.files import read_json, storage_errors, write_bytes, write_json
from edgeladder.core.moves import Wanted

MARK = ".suggested.json"
_SPLITS = ("train", "validation", "val", "test")


def require_sortable(folder: Path) -> None:
    """Refuse a folder that holds what is not ours.

    Raises:
        ConfigError: it is not empty and no suggestion made it, or pictures wait in it.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / MARK).is_file():
        raise ConfigError(
            "--out names what EdgeLadder did not make",
            where=str(folder),
            remedy="choose another --out, or move away what is there",
        )
    if _sorted_files(folder):
        raise ConfigError(
            "there are sorted pictures in this folder",
            where=str(folder),
            remedy=f"`edgeladder suggest --take {folder}` makes them labelled pictures first",
        )


def lay_out(
    folder: Path, paths: list[str], classes: list[str], content: Callable[[str], bytes]
) -> list[str]:
    """Make the folder: links in the order given, and a folder a class; the names of the links.

    Args:
        folder: absent, empty, or made by an earlier suggestion, whose links are replaced.
        paths: pictures; those that are no files are written as copies.
        classes: known ones.
        content: a picture's bytes, where it is no file.

    Raises:
        StorageError: the disk is full.
    """
    names = []
    with storage_errors(folder):
        disk.make_folders(folder)
        for name in _laid_out(folder):
            if (folder / name).is_symlink() or (folder / name).is_file():
                disk.unlink(folder / name)
        planned = [f"{n:03d}-{Path(path).name}" for n, path in enumerate(paths, start=1)]
        write_json(folder / MARK, {"names": planned})  # first: what is ours is known by it
        for name, path in zip(planned, paths, strict=True):
            if os.path.isfile(path):
                with contextlib.suppress(OSError):  # a file system without links: a copy
                    os.symlink(os.path.abspath(path), folder / name)
            if not os.path.lexists(folder / name):
                write_bytes(folder / name, content(path))
            names.append(name)
        for label in classes:
            disk.make_folders(folder / label)
        disk.fsync_directory(folder)
    return names


def sorted_pictures(folder: Path, data: Path) -> tuple[list[Wanted], list[Path]]:
    """What was sorted: pictures and the class folders of `data` they go to, and the links.

    Raises:
        ConfigError: no such folder, a folder's name is no class, or a link leads nowhere.
    """
    if not (folder / MARK).is_file():
        raise ConfigError(
            "no suggestion made this folder",
            where=str(folder),
            remedy="`edgeladder suggest 20 --out FOLDER` makes one to sort in",
        )
    top = next((p.name for p in data.iterdir() if p.name.lower() == "train" and p.is_dir()), None)
    wanted, links = [], []
    for path in _sorted_files(folder):
        label = path.parent.name
        if label.lower() in _SPLITS or label.startswith("."):
            raise ConfigError(
                f"{label!r} is no name of a class", where=str(path), remedy="rename the folder"
            )
        original = Path(os.path.realpath(path))
        if not original.is_file():
            raise ConfigError(
                f"{path} leads to a picture that is gone",
                where=str(folder),
                remedy="remove the link",
            )
        wanted.append(Wanted(str(original), f"{top}/{label}" if top else label))
        if path.is_symlink():
            links.append(path)
    return wanted, links


def _sorted_files(folder: Path) -> list[Path]:
    below = [p for p in sorted(folder.iterdir()) if p.is_dir() and not p.is_symlink()]
    return [path for place in below for path in sorted(place.iterdir()) if not path.is_dir()]


def _laid_out(folder: Path) -> list[str]:
    """Names that an earlier suggestion put on top of the folder."""
    try:
        values: Any = read_json(folder / MARK)
        return [name for name in values["names"] if Path(name).name == name]
    except (OSError, ValueError, LookupError, TypeError):
        return []
