"""A bundle as one .tar file: packed the same each time, unpacked beside itself."""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

from edgeladder.core import disk
from edgeladder.core.confinement import AGAIN, is_confined
from edgeladder.core.errors import IntegrityError
from edgeladder.core.files import building, replacing
from edgeladder.core.ownership import MANIFEST, SIGNATURE, require_ours


def is_archive(path: Path) -> bool:
    """Whether there is a tar file, or what is called one (and may be cut short)."""
    return path.is_file() and (path.suffix == ".tar" or tarfile.is_tarfile(path))


def pack(folder: Path, archive: Path, *, option: str = "--out") -> None:
    """Write a bundle as one .tar, whole or not at all; the same bundle gives the same bytes.

    Names are sorted, owners and times left out.

    Args:
        folder: the bundle.
        archive: the file; an earlier archive of a bundle is replaced.
        option: the option that named it, for the error.

    Raises:
        ConfigError: the file is there and no archive of a bundle.
        StorageError: the disk is full.
    """
    require_ours(archive, "archive", option=option)
    names = sorted(
        name
        for path in folder.rglob("*")
        if path.is_file() and (name := path.relative_to(folder).as_posix()) != MANIFEST
    )
    with (
        replacing(archive) as temporary,
        disk.create(temporary) as out,
        tarfile.open(fileobj=out, mode="w") as tar,
    ):
        for name in (MANIFEST, *names):  # first, so that it is read without seeking
            path = folder / name
            member = tar.gettarinfo(path, name)
            member.mode = 0o644
            member.uid = member.gid = member.mtime = 0
            member.uname = member.gname = ""
            with open(path, "rb") as stream:
                tar.addfile(member, stream)


def unpack(archive: Path) -> Path:
    """Unpack a bundle's .tar into the folder of its name beside it, where it is not there yet.

    A folder with another manifest than the archive's is of an earlier archive, and unpacked anew.

    Returns:
        The folder, whose manifest is the archive's byte for byte.

    Raises:
        IntegrityError: no manifest in the archive, or an entry that leads out of it.
        ConfigError: the folder's name is taken by something that is no bundle.
        StorageError: the disk is full.
    """
    folder = archive.with_suffix("")
    if folder == archive:
        folder = archive.with_name(f"{archive.name}.bundle")
    try:
        with tarfile.open(archive, "r:") as tar:  # not compressed: no few bytes become many
            members = _checked(tar, archive, folder)
            manifest = _manifest(tar, members, archive)
            stored = {MANIFEST: manifest, SIGNATURE: _content(tar, members, SIGNATURE)}
            if all(_known(folder / name) == content for name, content in stored.items()):
                return folder
            with building(folder, "bundle", option="--bundle") as temporary:
                for name, member in members.items():
                    _extract(tar, member, temporary / name)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise IntegrityError(
            f"damaged archive, or a compressed one: {error}", where=str(archive), remedy=AGAIN
        ) from error
    return folder


def _checked(tar: tarfile.TarFile, archive: Path, folder: Path) -> dict[str, tarfile.TarInfo]:
    """The files of an archive by name; nothing but plain files and folders, each once, inside.

    Folders are left out: files bring theirs. Of the files only content is taken over, no owner,
    mode (setuid among them) or time.
    """
    found: dict[str, tarfile.TarInfo] = {}
    taken: set[str] = set()
    for member in tar:
        name = PurePosixPath(member.name)
        text = name.as_posix()
        plain = member.isdir() or (member.isfile() and not member.issparse())
        inside = is_confined(text) or (text == "." and member.isdir())
        if not plain or not inside or text in found or (member.isfile() and text in taken):
            raise IntegrityError(
                f"unexpected entry {member.name[:200]!r}", where=str(archive), remedy=AGAIN
            )
        above = {parent.as_posix() for parent in name.parents}
        if above & found.keys():
            raise IntegrityError(f"{text!r} lies below a file", where=str(archive), remedy=AGAIN)
        taken |= above
        if hasattr(tarfile, "data_filter"):  # Python's own judgement, where it has one
            tarfile.data_filter(member, str(folder))
        if member.isfile():
            found[text] = member
    return found


def _manifest(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], archive: Path) -> bytes:
    content = _content(tar, members, MANIFEST)
    if content is not None:
        return content
    raise IntegrityError(
        "the archive holds no bundle",
        where=str(archive),
        remedy="`edgeladder export --out NAME.tar` makes one",
    )


def _content(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str) -> bytes | None:
    stream = tar.extractfile(members[name]) if name in members else None
    return None if stream is None else stream.read()


def _known(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Content only: neither the archive's owners nor its modes and times are taken over."""
    disk.make_folders(target.parent)
    stream = tar.extractfile(member)
    assert stream is not None  # a plain file: `_checked`
    with stream, disk.create(target) as out:
        while block := stream.read(1 << 20):
            out.write(block)
