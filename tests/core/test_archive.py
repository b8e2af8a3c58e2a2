"""A bundle as one .tar: packed whole, unpacked once, never an older one in its place."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from edgeladder.core.archive import pack, unpack
from edgeladder.core.bundle import Bundle, record_files
from edgeladder.core.errors import ConfigError, IntegrityError


def changed(bundle: Path) -> Path:
    """Make another bundle of it: its manifest tells another version."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["versions"]["edgeladder"] = "another"
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_what_is_packed_is_opened_and_packs_the_same(bundle_folder: Path, tmp_path: Path) -> None:
    archive, again = tmp_path / "bundle.tar", tmp_path / "again.tar"
    pack(bundle_folder, archive)
    opened = Bundle.open(archive)
    assert opened.folder == tmp_path / "bundle"
    assert opened.digest == Bundle.open(bundle_folder).digest
    assert record_files(opened.folder) == record_files(bundle_folder)
    os.utime(opened.folder / "manifest.json", (1, 1))
    (opened.folder / "manifest.json").chmod(0o600)
    pack(opened.folder, again)
    assert again.read_bytes() == archive.read_bytes()


def test_an_archive_packed_anew_is_unpacked_anew(bundle_copy: Path, tmp_path: Path) -> None:
    archive = tmp_path / "place" / "bundle.tar"
    pack(bundle_copy, archive)
    old = Bundle.open(archive).digest
    stamp = (tmp_path / "place" / "bundle" / "manifest.json").stat().st_ino
    Bundle.open(archive)
    assert (tmp_path / "place" / "bundle" / "manifest.json").stat().st_ino == stamp, "once"
    pack(changed(bundle_copy), archive)
    new = Bundle.open(archive)
    assert new.digest != old
    assert new.manifest.versions["edgeladder"] == "another"


def test_a_folder_of_another_make_is_not_unpacked_over(bundle_copy: Path, tmp_path: Path) -> None:
    archive, folder = tmp_path / "cats.tar", tmp_path / "cats"
    pack(bundle_copy, archive)
    folder.mkdir()
    (folder / "one.jpg").write_bytes(b"a cat")
    with pytest.raises(ConfigError, match="--bundle names what EdgeLadder did not make"):
        Bundle.open(archive)
    assert [path.name for path in folder.iterdir()] == ["one.jpg"]


def test_an_archive_replaces_only_an_archive(bundle_copy: Path, tmp_path: Path) -> None:
    archive = tmp_path / "thesis.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(bundle_copy / "manifest.json", "chapter1.txt")
    before = archive.read_bytes()
    with pytest.raises(ConfigError, match="an archive without a bundle"):
        pack(bundle_copy, archive)
    archive.with_suffix(".txt").write_text("words")
    with pytest.raises(ConfigError, match="no tar archive"):
        pack(bundle_copy, archive.with_suffix(".txt"))
    assert archive.read_bytes() == before


def test_an_archive_is_whole_or_absent(
    bundle_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "bundle.tar"
    pack(bundle_copy, archive)
    before = archive.read_bytes()

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tarfile.TarFile, "addfile", cut)
    with pytest.raises(KeyboardInterrupt):
        pack(changed(bundle_copy), archive)
    assert archive.read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_a_damaged_or_hostile_archive_is_an_integrity_error(
    bundle_copy: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "bundle.tar"
    pack(bundle_copy, archive)
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(IntegrityError):
        unpack(archive)
    for name, kind in (
        ("../outside", tarfile.REGTYPE),
        ("/outside", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
    ):
        hostile = tmp_path / "hostile.tar"
        with tarfile.open(hostile, "w") as tar:
            tar.add(bundle_copy / "manifest.json", "manifest.json")
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/outside"
            tar.addfile(entry)
        with pytest.raises(IntegrityError, match="unexpected entry"):
            unpack(hostile)
    nothing = tmp_path / "nothing.tar"
    with tarfile.open(nothing, "w"):
        pass
    with pytest.raises(IntegrityError, match="holds no bundle"):
        unpack(nothing)
    assert not (tmp_path / "hostile").exists()
