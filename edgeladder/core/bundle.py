"""The bundle: the only thing that crosses from the host to a device (contract 1).

A directory, or one .tar file of it, with `manifest.json` and the files it lists by size and
SHA-256. Opening a bundle checks the version, that every file it names is listed, lies inside and
is a plain file, that no graph can reach anything else and, with `verify`, every byte.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from edgeladder.core.confinement import AGAIN, is_sha256, plain_size, require_listed
from edgeladder.core.errors import ConfigError, IntegrityError
from edgeladder.core.files import read_json, sha256_bytes, sha256_file, write_json
from edgeladder.core.manifest import SCHEMA_VERSION, FileRecord, Manifest
from edgeladder.core.old_words import modern_manifest
from edgeladder.core.ownership import MANIFEST
from edgeladder.core.records import compact_json, from_json, to_json
from edgeladder.core.shipped import named_bundle
from edgeladder.core.signature import SUFFIX, require_trusted
from edgeladder.core.trusted_keys import PublicKey, pinned_keys

Side = Literal["image", "text"]
SIDES: tuple[Side, ...] = ("image", "text")


class Bundle:
    """An opened bundle: its folder and manifest."""

    def __init__(self, folder: Path, manifest: Manifest):
        self.folder = folder
        self.manifest = manifest
        self._unchecked: set[str] = set()  # graphs that are looked into when they are asked for

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        verify: bool = True,
        trusted: list[PublicKey] | None = None,
        graphs: Literal["now", "when used"] = "now",
    ) -> Bundle:
        """Open a bundle directory, or unpack a .tar of one beside itself and open that.

        Args:
            path: folder with `manifest.json`, a .tar file, or `nano`, the model that ships.
            verify: hash every file; without it only place, kind, size and graphs are checked.
            trusted: publishers, one of whom must have signed it, whereupon every file is hashed;
                empty: anyone or nobody; None: those that are pinned here.
            graphs: checked now, or each when `path` is asked for it; a prediction uses half of
                them, and has no other way to one.

        Raises:
            ConfigError: there is no bundle at `path`.
            IntegrityError: another schema version, a missing or changed file, one that is not
                listed or not inside, a graph with what no export writes, or no signature of a
                publisher who is pinned.
        """
        from edgeladder.core.archive import is_archive, unpack  # workers open no archives

        folder = named_bundle(path)
        if is_archive(folder):
            folder = unpack(folder)
        if not (folder / MANIFEST).is_file():
            raise ConfigError(
                "no bundle here",
                where=str(folder),
                remedy="make one on a host with `edgeladder export --model ViT-B/16 --out bundle`, "
                "or name one with --bundle (`--bundle nano` is the model that ships)",
            )
        trusted = pinned_keys() if trusted is None else trusted
        require_trusted(folder, "bundle", trusted)  # before anything of it is parsed
        bundle = cls(folder, _read_manifest(folder))
        bundle.check(verify=verify or bool(trusted), graphs=graphs)
        return bundle

    @classmethod
    def reopen(cls, folder: str | Path) -> Bundle:
        """A bundle whose files another process has just checked.

        Of the list of files only the towers' are held: thousands of others nobody reads again.

        Raises:
            IntegrityError: the manifest is not readable.
        """
        return cls(Path(folder), _read_manifest(Path(folder), with_files=False))

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest, which holds every file's hash: the bundle's identity."""
        return sha256_file(self.folder / MANIFEST)

    def path(self, name: str) -> Path:
        """The file of a manifest-relative name.

        Raises:
            IntegrityError: a graph with what no export writes, where opening left that to us.
        """
        if name in self._unchecked:
            self._check_graph(name)
            self._unchecked.discard(name)
        return self.folder / name

    def tower_key(self, side: Side) -> str:
        """SHA-256 of all that decides what a tower gives: the activation cache's key.

        By the hashes of the files themselves, which opening has compared, and not by what the
        manifest calls the tower: a bundle with other weights never finds this one's activations.

        Raises:
            IntegrityError: a file of the tower is not in the manifest's list.
        """
        manifest = self.manifest
        tower = manifest.image if side == "image" else manifest.text
        hashes = {name: manifest.files[name].sha256 for name in _tower_files(manifest, side)}
        cut = [[segment.file, segment.inputs, segment.outputs] for segment in tower.segments]
        outputs = [tower.taps, tower.embedding, tower.embedding_pre]
        read = manifest.preprocess if side == "image" else manifest.tokenizer
        parts = compact_json([hashes, cut, outputs, read])
        return sha256_bytes(parts.encode("utf-8", "surrogatepass"))

    def check(self, *, verify: bool = True, graphs: Literal["now", "when used"] = "now") -> None:
        """Compare the files with the manifest, and the graphs with what a bundle may do.

        Raises:
            IntegrityError: naming the first file that is missing, elsewhere, not listed or
                different.
        """
        files = self.manifest.files
        where = str(self.folder / MANIFEST)
        require_listed(self.manifest.names(), files, where=where)
        for name, record in files.items():
            if PurePosixPath(name).suffix in _CODE:
                raise IntegrityError(f"{name} is code", where=where, remedy=AGAIN)
            size = plain_size(self.folder, name)
            path = self.folder / name
            if (
                size != record.size
                or not is_sha256(record.sha256)
                or (verify and sha256_file(path) != record.sha256)
            ):
                raise IntegrityError(
                    f"{name} is not what the manifest says", where=str(path), remedy=AGAIN
                )
        self._unchecked = self.manifest.model_names()
        if graphs == "now":
            for name in sorted(self._unchecked):
                self.path(name)

    def _check_graph(self, name: str) -> None:
        from edgeladder.core.onnx_check import check_model  # workers check no bundles

        outside = check_model(self.folder, name)
        require_listed(outside, self.manifest.files, where=str(self.folder / name))


_CODE = frozenset({".so", ".dll", ".dylib", ".pyd", ".py", ".pyc", ".pkl", ".pt", ".pth"})
_LARGEST_MANIFEST_BYTES = 64 << 20


def _read_manifest(folder: Path, *, with_files: bool = True) -> Manifest:
    where = str(folder / MANIFEST)
    if plain_size(folder, MANIFEST) > _LARGEST_MANIFEST_BYTES:
        raise IntegrityError("unreadable manifest: too long", where=where, remedy=AGAIN)
    try:
        values = read_json(folder / MANIFEST)
        version = values["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"unreadable manifest: {error}", where=where, remedy=AGAIN) from error
    if version != SCHEMA_VERSION:
        raise IntegrityError(
            f"bundle version {version}, this edgeladder reads version {SCHEMA_VERSION}",
            where=where,
            remedy="export the bundle with the same edgeladder version as the device's",
        )
    values = modern_manifest(values)
    listed = values.get("files")
    if with_files or not isinstance(listed, dict):
        return from_json(Manifest, values, where=where)
    manifest = from_json(Manifest, {**values, "files": {}}, where=where)
    ours = {
        name: from_json(FileRecord, listed[name], where=where)
        for side in SIDES
        for name in _tower_files(manifest, side, listed, where)
    }
    return dataclasses.replace(manifest, files=ours)


def _tower_files(
    manifest: Manifest, side: Side, listed: Collection[str] | None = None, where: str = MANIFEST
) -> list[str]:
    """What a tower is read from: its segments, what lies beside them, and a text's tokenizer.

    Weights lie in files of their own beside the graphs or below: onnxruntime reads no others.
    """
    tower = manifest.image if side == "image" else manifest.text
    named = [segment.file for segment in tower.segments]
    named += manifest.tokenizer.files if side == "text" else []
    folders = {PurePosixPath(segment.file).parent for segment in tower.segments}
    known = manifest.files if listed is None else listed
    missing = [name for name in named if name not in known]
    if missing:
        raise IntegrityError(f"the manifest has no hash of {missing[0]}", where=where, remedy=AGAIN)
    beside = [name for name in known if folders & set(PurePosixPath(name).parents)]
    return sorted({*named, *beside})


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Size and hash of every file under `folder` but the manifest and its signature."""
    return {
        name: FileRecord(size=path.stat().st_size, sha256=sha256_file(path))
        for name, path in _walk(folder)
    }


def _walk(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (MANIFEST, MANIFEST + SUFFIX):
            yield name, path


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` with the hashes of all files beside it: the last act of an export."""
    complete = dataclasses.replace(manifest, files=record_files(folder))
    write_json(folder / MANIFEST, to_json(complete))
