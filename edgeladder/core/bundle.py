"""The bundle: the only thing that crosses from the host to a device (contract 1).

A directory, or one .tar file of it, with `manifest.json` and the files it lists by size and
SHA-256. Opening a bundle checks the version, that every file is there and, with `verify`, every
byte.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import read_json, sha256_file, write_json
from edgeladder.core.manifest import SCHEMA_VERSION, FileRecord, Manifest
from edgeladder.core.old_words import modern_manifest
from edgeladder.core.ownership import MANIFEST
from edgeladder.core.records import from_json, to_json


class Bundle:
    """An opened bundle: its folder and manifest."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> Bundle:
        """Open a bundle directory, or unpack a .tar of one beside itself and open that.

        Args:
            path: folder with `manifest.json`, or a .tar file.
            verify: hash every file; without it only presence and size are checked.

        Raises:
            ConfigError: there is no bundle at `path`.
            IntegrityError: another schema version, a missing or changed file.
        """
        from edgeladder.core.archive import is_archive, unpack  # workers open no archives

        folder = Path(path)
        if is_archive(folder):
            folder = unpack(folder)
        if not (folder / MANIFEST).is_file():
            raise ConfigError(
                "no bundle here",
                where=str(folder),
                remedy="make one on a host with `edgeladder export --model ViT-B/16 --out bundle`, "
                "or name one with --bundle",
            )
        bundle = cls(folder, _read_manifest(folder))
        bundle.check(verify=verify)
        return bundle

    @classmethod
    def reopen(cls, folder: str | Path) -> Bundle:
        """A bundle whose files another process has just checked; its list of files is left out.

        Raises:
            IntegrityError: the manifest is not readable.
        """
        return cls(Path(folder), _read_manifest(Path(folder), with_files=False))

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which holds every file's hash: the bundle's identity."""
        return sha256_file(self.folder / MANIFEST)

    def path(self, name: str) -> Path:
        """The file of a manifest-relative name."""
        return self.folder / name

    def check(self, *, verify: bool = True) -> None:
        """Compare the files with the manifest.

        Raises:
            IntegrityError: naming the first file that is missing or differs.
        """
        for name, record in self.manifest.files.items():
            path = self.folder / name
            if not path.is_file():
                raise IntegrityError(
                    f"the bundle lacks {name}", where=str(self.folder), remedy=_AGAIN
                )
            if path.stat().st_size != record.size or (
                verify and sha256_file(path) != record.sha256
            ):
                raise IntegrityError(
                    f"{name} is not what the manifest says", where=str(path), remedy=_AGAIN
                )


_AGAIN = "copy or export the bundle again"


def _read_manifest(folder: Path, *, with_files: bool = True) -> Manifest:
    where = str(folder / MANIFEST)
    try:
        values = read_json(folder / MANIFEST)
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"unreadable manifest: {error}", where=where, remedy=_AGAIN) from error
    if version != SCHEMA_VERSION:
        raise IntegrityError(
            f"bundle version {version}, this edgeladder reads version {SCHEMA_VERSION}",
            where=where,
            remedy="export the bundle with the same edgeladder version as the device's",
        )
    values = modern_manifest(values)
    if not with_files:
        values.pop("files", None)  # thousands of entries that nobody reads again
    return from_json(Manifest, values, where=where)


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and hash of every file under `folder` but the manifest."""
    return {
        name: FileRecord(size=path.stat().st_size, sha256=sha256_file(path))
        for name, path in _walk(folder)
    }


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            yield name, path


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with the hashes of all files beside it: the last act of an export."""
    complete = dataclasses.replace(manifest, files=record_files(folder))
    write_json(folder / MANIFEST, to_json(complete))
