"""What `watch` has found: a line a picture in a CSV or JSONL file, exactly one, whatever happens.

The file is the truth. A line is on the disk before the picture counts as done, and holds what tells
the picture from another (name, size, time); a small database beside it answers quickly which are
done, and how far it has read. After a crash the lines that it has not read are read, and a torn
last line goes: no picture is written twice or left out. Somebody may move the file away at any
time; a new one is begun.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeladder.core import disk
from edgeladder.core.errors import ConfigError, DataError, StorageError
from edgeladder.core.files import storage_errors
from edgeladder.core.inference import Label
from edgeladder.core.records import to_json
from edgeladder.serve.arrivals import Arrival

FORMATS = (".csv", ".jsonl")
COLUMNS = ("time", "path", "label", "probability", "known", "unknown", "error", "target", "size",
           "modified")  # fmt: skip
_LARGEST = 2**63  # what the database counts to
_FORMULA = ("=", "+", "-", "@")  # a spreadsheet would compute a cell that begins so


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is said of one picture."""

    time: str  # UTC, ISO 8601
    arrival: Arrival
    labels: tuple[Label, ...]
    known: float | None
    unknown: bool
    error: str | None
    target: str | None  # where the picture goes


class Journal:
    """The file, and what is done by it. One process at a time."""

    def __init__(self, out: Path):
        """Open both, and read what the database has not.

        Raises:
            ConfigError: neither .csv nor .jsonl, or another process writes it.
            DataError: the file is of another making.
            StorageError: it cannot be read or written.
        """
        if out.suffix.lower() not in FORMATS:
            raise ConfigError(
                f"{out.suffix or 'no suffix'} is no format of answers",
                where=str(out),
                remedy="name a file that ends in .csv or .jsonl",
            )
        self.out = out
        self._is_csv = out.suffix.lower() == ".csv"
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            self._database = _database(out)
            self._descriptor = -1
            with _state_errors(out):
                self._open()

    def close(self) -> None:
        """Safe to call again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._database.close()

    def is_done(self, arrival: Arrival) -> bool:
        """Whether this very picture has its line."""
        key = (arrival.name, arrival.size, arrival.modified)
        asked = "SELECT 1 FROM done WHERE name = ? AND size = ? AND modified = ?"
        with _state_errors(self.out):
            return self._database.execute(asked, key).fetchone() is not None

    def add(self, entry: Entry) -> None:
        """Write a picture's line; on the disk when this returns.

        Raises:
            StorageError: the disk is full, or the file cannot be written; nothing is written then.
        """
        with storage_errors(self.out), _state_errors(self.out):
            self._follow()
            before = os.fstat(self._descriptor).st_size
            try:
                disk.write(self._descriptor, self._line(entry))
                os.fsync(self._descriptor)
            except OSError:
                os.ftruncate(self._descriptor, before)
                raise
            self._mark(entry.arrival, entry.target)
            self._commit()

    def pass_over(self, arrival: Arrival) -> None:
        """Count a picture as done without a line."""
        with _state_errors(self.out):
            self._mark(arrival, None)
            self._database.commit()

    def placed(self, arrival: Arrival, *, is_gone: bool) -> None:
        """A picture is where its line says; one that is gone here need not be remembered."""
        key = (arrival.name, arrival.size, arrival.modified)
        does = "DELETE FROM done" if is_gone else "UPDATE done SET target = NULL"
        with _state_errors(self.out):
            self._database.execute(f"{does} WHERE name = ? AND size = ? AND modified = ?", key)
            self._database.commit()

    def unplaced(self) -> list[tuple[Arrival, str]]:
        """Pictures that have a line but may not be yet where it says."""
        asked = "SELECT name, size, modified, target FROM done WHERE target IS NOT NULL LIMIT 1000"
        with _state_errors(self.out):
            rows = self._database.execute(asked).fetchall()
        return [(Arrival(*row[:3]), row[3]) for row in rows]

    def _open(self) -> None:
        if self.out.exists() and not self.out.is_file():  # nothing is read back from a pipe
            raise ConfigError(
                "no plain file to write lines to", where=str(self.out), remedy="name another --out"
            )
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self.out, flags, 0o644)
        size = os.fstat(self._descriptor).st_size
        if self._position() > size:
            self._set_position(0)  # another file than the one that was read
        if size == 0:
            if self._is_csv:
                disk.write(self._descriptor, (",".join(COLUMNS) + "\n").encode())
            os.fsync(self._descriptor)
            disk.fsync_directory(self.out.parent)
        else:
            self._catch_up()
        self._commit()

    def _follow(self) -> None:
        """Begin a new file where the one that is open was moved away (logrotate)."""
        try:
            there = os.stat(self.out)
        except FileNotFoundError:
            there = None
        here = os.fstat(self._descriptor)
        if there is None or (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino):
            os.close(self._descriptor)
            self._set_position(0)
            self._open()

    def _catch_up(self) -> None:
        """Read lines that the database does not know; cut a torn one off."""
        with open(self.out, "rb") as stream:
            if self._is_csv and stream.readline().decode("utf-8", "replace").rstrip("\r\n").split(
                ","
            ) != list(COLUMNS):
                raise DataError(
                    "a CSV file with other columns", where=str(self.out), remedy="name a new one"
                )
            start = max(self._position(), stream.tell())
            stream.seek(start)
            whole = start
            ours = self._is_csv or start > 0
            for line in stream:
                if not line.endswith(b"\n"):
                    if ours:
                        os.ftruncate(self._descriptor, whole)
                    else:  # it may be a person's
                        disk.write(self._descriptor, b"\n")
                    break
                whole += len(line)
                for arrival, target in self._read(line):
                    self._mark(arrival, target)

    def _read(self, line: bytes) -> Iterator[tuple[Arrival, str | None]]:
        try:
            text = line.decode("utf-8")
            if self._is_csv:
                values: dict[str, Any] = dict(zip(COLUMNS, next(csv.reader([text])), strict=True))
            else:
                values = json.loads(text)
            path = str(values["path"]).removeprefix("./")
            found = Arrival(path, int(values["size"]), int(values["modified"]))
            target = values["target"] or None
        except (
            ValueError,
            KeyError,
            TypeError,
            StopIteration,
            csv.Error,
            OverflowError,
            RecursionError,
        ):
            return  # a person's own line
        if max(abs(found.size), abs(found.modified)) < _LARGEST and _is_text(path, target):
            yield found, target

    def _line(self, entry: Entry) -> bytes:
        best = entry.labels[0] if entry.labels else None
        arrival = entry.arrival
        if not self._is_csv:
            values = {
                "time": entry.time,
                "path": arrival.name,
                "labels": to_json(entry.labels),
                "known": entry.known,
                "unknown": entry.unknown,
                "error": entry.error,
                "target": entry.target,
                "size": arrival.size,
                "modified": arrival.modified,
            }
            return (json.dumps(values) + "\n").encode()
        row = [
            entry.time,
            f"./{arrival.name}" if arrival.name.startswith(_FORMULA) else arrival.name,
            _cell(best.label) if best else "",
            f"{best.probability:.6g}" if best else "",
            "" if entry.known is None else f"{entry.known:.6g}",
            "yes" if entry.unknown else "no",
            _cell(entry.error or ""),
            entry.target or "",
            arrival.size,
            arrival.modified,
        ]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(row)
        return text.getvalue().encode()

    def _mark(self, arrival: Arrival, target: str | None) -> None:
        row = (arrival.name, arrival.size, arrival.modified, target)
        self._database.execute("INSERT OR IGNORE INTO done VALUES (?, ?, ?, ?)", row)

    def _position(self) -> int:
        position = self._database.execute("SELECT position FROM read").fetchone()[0]
        if not isinstance(position, int):  # SQLite keeps any value in any column
            raise sqlite3.DatabaseError("how far it was read is no number")
        return position

    def _set_position(self, position: int) -> None:
        self._database.execute("UPDATE read SET position = ?", (position,))

    def _commit(self) -> None:
        self._set_position(os.fstat(self._descriptor).st_size)
        self._database.commit()


def _is_text(path: str, target: Any) -> bool:
    """Whether the database can hold both: a line may be anybody's."""
    if target is not None and not isinstance(target, str):
        return False
    try:
        (path + (target or "")).encode()
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def _state_errors(out: Path) -> Iterator[None]:
    """What goes wrong with the database later on, as what a person can act on."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        where, why = str(_state_path(out)), str(error)
        if any(word in why for word in ("is full", "readonly", "I/O")):
            raise StorageError(
                f"cannot write what is done: {why}",
                where=where,
                remedy="free some space or choose another --out, then run the command again",
            ) from error
        raise _damaged(out, error) from error


def _state_path(out: Path) -> Path:
    return out.with_name(out.name + ".state")


def _damaged(out: Path, error: Exception) -> DataError:
    return DataError(
        f"the state beside the answers is damaged ({error})",
        where=str(_state_path(out)),
        remedy=f"remove it: it is made again from {out.name}",
    )


def _cell(text: str) -> str:
    """Text of one line that no spreadsheet takes for a formula."""
    line = " ".join(text.splitlines())
    return f"'{line}" if line.startswith(_FORMULA) else line


def _database(out: Path) -> sqlite3.Connection:
    path = _state_path(out)
    try:
        found = sqlite3.connect(path, timeout=0.5, check_same_thread=False)
    except sqlite3.Error as error:
        raise ConfigError(
            f"the answers cannot have their state beside them ({error})",
            where=str(path)[:300],
            remedy="name another --out",
        ) from error
    try:
        found.execute("PRAGMA locking_mode = EXCLUSIVE")
        found.execute("PRAGMA journal_mode = WAL")
        found.execute("PRAGMA synchronous = NORMAL")
        found.execute("PRAGMA cache_size = -512")  # KiB: memory stays the same however many
        found.execute(
            "CREATE TABLE IF NOT EXISTS done (name TEXT, size INT, modified INT, target TEXT, "
            "PRIMARY KEY (name, size, modified)) WITHOUT ROWID"
        )
        found.execute("CREATE INDEX IF NOT EXISTS open ON done (target) WHERE target IS NOT NULL")
        found.execute("CREATE TABLE IF NOT EXISTS read (position INT)")
        found.execute("INSERT INTO read SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM read)")
        found.commit()
    except sqlite3.OperationalError as error:
        found.close()
        raise ConfigError(
            f"another process writes these answers ({error})",
            where=str(path),
            remedy="stop it, or name another --out",
        ) from error
    except sqlite3.DatabaseError as error:
        found.close()
        raise _damaged(out, error) from error
    return found
