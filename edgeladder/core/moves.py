"""Pictures moved between class folders by a person's decision: journalled, undoable, crash-safe.

Every move is written down, with the hash of the file, before the first one is made. A move renames
one file, never over another. So a power cut leaves pictures at one of their two places, and the
next call finishes what the journal says: `fix` goes on, `undo` goes back.

    DATA/.edgeladder/moves/000001.json      {"state", "moves": [{"source", "target", "sha256"}]}

Hidden folders are no class folders, so the journal may lie beside the pictures. It may also have
come with them from elsewhere: a journal that reaches out of its folder is followed only where this
machine wrote it (`made_here`).
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeladder.core import disk
from edgeladder.core.confinement import is_confined
from edgeladder.core.errors import ConfigError, DataError, EdgeLadderError, IntegrityError
from edgeladder.core.files import replacing, sha256_file, storage_errors, write_json
from edgeladder.core.made_here import journal_code
from edgeladder.core.records import compact_json, read_record, to_json

HIDDEN = ".edgeladder/"  # in a data folder: passed over where classes are sought
JOURNALS = Path(HIDDEN) / "moves"
State = Literal["moving", "done", "undoing", "undone"]


@dataclass(frozen=True, kw_only=True)
class Move:
    """One picture; whole paths, or relative to the data's folder."""

    source: str
    target: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Journal:
    """What one call moves, and how far it is."""

    state: State
    moves: list[Move]
    code: str = ""  # that this machine wrote them; where all stays in the folder none is needed


@dataclass(frozen=True)
class Wanted:
    """A picture and the folder it shall lie in."""

    source: str
    folder: str  # relative to the data's folder


def move_pictures(root: Path, wanted: list[Wanted]) -> list[Move]:
    """Move pictures into folders of `root`; a name that is taken gets a number.

    Raises:
        ConfigError: a source is not a plain file or named twice, a folder's name leads elsewhere,
            or an earlier call was cut short (`finish` it first).
        StorageError: the disk is full or read-only; what was moved stays so.
    """
    moves = _planned(root, wanted)
    if moves:
        path = _next_journal(root)
        with storage_errors(path):
            disk.make_folders(path.parent)
        journal = Journal(state="moving", moves=moves, code=_code(root, moves))
        write_json(path, to_json(journal))
        _go_on(root, path, journal)
    return moves


def finish(root: Path) -> list[Move]:
    """Finish the call that was cut short, if one was, in the direction it went; its moves."""
    path, journal = _newest(root)
    if path is None or journal.state in ("done", "undone"):
        return []
    _go_on(root, path, journal)
    return journal.moves


def undo(root: Path) -> list[Move]:
    """Take back the newest call that stands; its moves.

    Raises:
        ConfigError: there is none, or a picture was changed or moved since.
    """
    for path in sorted(_journals(root), reverse=True):
        journal = _read(root, path)
        if journal.state == "undone":
            continue
        for move in journal.moves:
            _check_back(root, move)
        journal = replace(journal, state="undoing")
        write_json(path, to_json(journal))
        _go_on(root, path, journal)
        return journal.moves
    raise ConfigError("nothing to undo", where=str(root), remedy="`check --fix FILE` moves first")


def _planned(root: Path, wanted: list[Wanted]) -> list[Move]:
    taken: set[str] = set()
    moves: list[Move] = []
    for item in wanted:
        source = root / item.source
        if source.is_symlink() or not source.is_file():
            raise ConfigError(
                f"no plain file at {item.source}",
                where=str(root),
                remedy="name pictures as `check` names them, relative to --data",
            )
        hidden = any(part.startswith(".") for part in item.folder.split("/"))
        if not is_confined(item.folder) or (hidden and not item.folder.startswith(HIDDEN)):
            raise ConfigError(
                f"{item.folder!r} is no name of a class folder",
                where=item.source,
                remedy="use a plain name without a dot in front",
            )
        if Path(os.path.normpath(source.parent)) == Path(os.path.normpath(root / item.folder)):
            continue  # it lies there already
        if item.source in {move.source for move in moves}:
            raise ConfigError(
                f"{item.source} is named twice", where=str(root), remedy="decide once a picture"
            )
        target = _free(root, f"{item.folder}/{source.name}", taken)
        taken.add(target)
        moves.append(Move(source=item.source, target=target, sha256=sha256_file(source)))
    return moves


def _free(root: Path, name: str, taken: set[str]) -> str:
    """The name, or with a number where another picture has it."""
    stem, dot, suffix = name.rpartition(".")
    for number in range(10_000):
        found = name if not number else f"{stem}-{number}{dot}{suffix}"
        if found not in taken and not os.path.lexists(root / found):
            return found
    raise ConfigError("ten thousand pictures of one name", where=name, remedy="rename some")


def _go_on(root: Path, path: Path, journal: Journal) -> None:
    """Make the moves that are not made yet, in the journal's direction, and close it."""
    back = journal.state == "undoing"
    with storage_errors(root):
        for move in journal.moves:
            source, target = root / move.source, root / move.target
            if back:
                source, target = target, source
            _rename(source, target, move)
    write_json(path, to_json(replace(journal, state="undone" if back else "done")))


def _rename(source: Path, target: Path, move: Move) -> None:
    if not source.exists():
        if target.is_file() and sha256_file(target) == move.sha256:
            return  # made before a power cut
        raise DataError(
            f"{source} is gone, and {target} is not that picture",
            where="a journal of moves",
            remedy="put the picture back to either place, then run the command again",
        )
    if os.path.lexists(target):
        if sha256_file(target) != move.sha256:
            raise DataError(
                f"{target} appeared meanwhile",
                where="a journal of moves",
                remedy="move it away, then run the command again",
            )
        disk.unlink(source)  # a copy to another disk was whole, and the power went before this
    else:
        disk.make_folders(target.parent)
        try:
            disk.replace(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)
            disk.unlink(source)
    disk.fsync_directory(source.parent)
    if not Path(move.source).is_absolute():  # below the data: an empty class cannot be trained
        with contextlib.suppress(OSError):
            disk.remove_folder(source.parent)


def _check_back(root: Path, move: Move) -> None:
    source, target = root / move.source, root / move.target
    there = target.is_file() and sha256_file(target) == move.sha256
    back = source.is_file() and sha256_file(source) == move.sha256
    if not back and (not there or os.path.lexists(source)):
        raise ConfigError(
            f"{move.target} was changed or moved since",
            where=str(root),
            remedy="put it back as it was, or move the others by hand",
        )


def _journals(root: Path) -> list[Path]:
    found = (root / JOURNALS).glob("*.json")
    return [path for path in found if path.stem.isascii() and path.stem.isdigit()]


def _newest(root: Path) -> tuple[Path | None, Journal]:
    journals = sorted(_journals(root))
    if not journals:
        return None, Journal(state="done", moves=[])
    return journals[-1], _read(root, journals[-1])


def _next_journal(root: Path) -> Path:
    path, journal = _newest(root)
    if path is None:
        return root / JOURNALS / "000001.json"
    if journal.state in ("moving", "undoing"):
        raise ConfigError(
            "an earlier call was cut short", where=str(path), remedy="finish it first"
        )
    return path.with_name(f"{int(path.stem) + 1:06d}.json")


def _read(root: Path, path: Path) -> Journal:
    remedy = f"move {path} away: the pictures stay where they are"
    try:
        journal = read_record(Journal, path)
    except IntegrityError as error:
        error.remedy = remedy
        raise
    if not _stays(root, journal.moves):
        code = journal_code(_told(journal.moves), make=False)
        if code is None or not hmac.compare_digest(
            code.encode(), journal.code.encode("utf-8", "replace")
        ):
            raise IntegrityError(
                "a journal that leads out of the pictures' folder, and was not written here",
                where=str(path),
                remedy=remedy,
            )
    return journal


def _told(moves: list[Move]) -> bytes:
    return compact_json(moves).encode("utf-8", "surrogatepass")


def _stays(root: Path, moves: list[Move]) -> bool:
    """Whether all of it lies below the data's folder, links followed."""
    top = os.path.realpath(root)
    for name in (name for move in moves for name in (move.source, move.target)):
        if os.path.isabs(name) or ".." in name.split("/") or "\0" in name:
            return False
        above = os.path.realpath((root / name).parent)
        if os.path.commonpath([top, above]) != top:
            return False
    return True


def _code(root: Path, moves: list[Move]) -> str:
    """This machine's mark, where it is needed; none where its secret cannot be kept."""
    if _stays(root, moves):
        return ""
    with contextlib.suppress(EdgeLadderError):
        return journal_code(_told(moves), make=True) or ""
    return ""
