"""A person's decisions about labels: the list that `check` writes, and what it says filled in.

Columns are path, label, suggested and decision. A row without a decision leaves its picture as it
is; a class's name moves it there, on its side of the split; `-` sets it aside, out of every class.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from edgeladder.core.errors import ConfigError, DataError
from edgeladder.core.files import write_text
from edgeladder.core.moves import Wanted
from edgeladder.core.plain_files import LARGEST_RECORD_BYTES, open_plain, read_plain_text
from edgeladder.core.review import Review

COLUMNS = ("path", "label", "suggested", "decision")
ASIDE = "-"
SET_ASIDE = ".edgeladder/set-aside"
_SPLITS = ("train", "validation", "val", "test")


def require_undecided(path: Path) -> None:
    """Refuse to write a list over anything but an earlier one that nobody has filled in.

    Raises:
        ConfigError: there is another file, or one with a person's decisions; nothing was touched.
    """
    if not path.exists():
        return
    try:
        foreign = bool(read_decisions(path))
        with open_plain(path) as stream:
            foreign = foreign or stream.readline().strip() != ",".join(COLUMNS).encode()
    except (DataError, OSError, ValueError):
        foreign = True
    if foreign:
        raise ConfigError(
            "--decisions names a file with decisions in it, or one that `check` did not write",
            where=str(path),
            remedy="choose another --decisions, or move away what is there",
        )


def write_decisions(path: Path, found: Review) -> None:
    """Write the list with no decision in it: suspects, then pictures that are in two classes.

    Raises:
        ConfigError: what is there is not such a list, or somebody has filled it in.
        StorageError: the disk is full.
    """
    require_undecided(path)  # again: looking through the pictures took its time
    rows = {item.path: (item.label, item.suggested) for item in found.suspects}
    for group in found.duplicates:
        if group.across_classes:
            for place in group.pictures:
                rows.setdefault(place.path, (place.label, ""))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([name, label, suggested, ""] for name, (label, suggested) in rows.items())
    write_text(path, out.getvalue())


def read_decisions(path: Path) -> list[Wanted]:
    """Which picture goes into which folder; rows without a decision say nothing.

    Raises:
        DataError: not such a list, by its line.
    """
    try:
        text = read_plain_text(path, most=LARGEST_RECORD_BYTES, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(
            f"cannot read the decisions: {error}",
            where=str(path),
            remedy="`check --decisions FILE` writes a list to fill in",
        ) from error
    found = []
    reader = csv.DictReader(io.StringIO(text))
    try:
        if not {"path", "decision"} <= set(reader.fieldnames or ()):
            raise _bad(path, 1, "the first line must name the columns path and decision")
        for row in reader:
            name, decision = row["path"] or "", (row["decision"] or "").strip()
            if not decision:
                continue
            if not name or "\0" in name + decision or row.get(None):
                raise _bad(path, reader.line_num, "a decision without a path, or too many columns")
            if name.startswith("/") or ".." in name.split("/"):
                raise _bad(path, reader.line_num, f"{name!r} leads out of the pictures' folder")
            if decision.lower() in _SPLITS or "/" in decision:
                raise _bad(path, reader.line_num, f"{decision!r} is no name of a class")
            found.append(Wanted(name, _folder(name, decision)))
    except csv.Error as error:
        raise _bad(path, reader.line_num, str(error)) from error
    return found


def _folder(name: str, decision: str) -> str:
    """Where a picture shall lie: on the side of the split where it is."""
    top, slash, rest = name.partition("/")
    split = f"{top}/" if slash and top.lower() in _SPLITS and "/" in rest else ""
    if decision == ASIDE:
        return f"{SET_ASIDE}/{Path(name).parent.as_posix()}"
    return f"{split}{decision}"


def _bad(path: Path, line: int, what: str) -> DataError:
    return DataError(what, where=f"{path}, line {line}", remedy=f"columns: {', '.join(COLUMNS)}")
