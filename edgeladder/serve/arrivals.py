"""Pictures as they arrive in a folder, each once it is wholly written.

The kernel tells of files that were closed after writing or moved in (inotify, by watchdog).
Network folders do not tell, and a queue of events can overflow, so that the folder is also looked
through: now and then, or every few seconds where nothing else is to be had. A file is taken when
its size and time have not changed between two looks, `settle_seconds` apart by our own clock.
"""

from __future__ import annotations

import os
import queue
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeladder.core.errors import DataError
from edgeladder.runtime.pictures.extensions import EXTENSIONS

LOOK_SECONDS = 60.0  # between two looks at the whole folder, where the kernel tells of files
POLL_SECONDS = 2.0  # the same, where it does not
_MOST_PENDING = 1000  # files that settle at the same time: the others are found at the next look
_CLOSED_SECONDS = 0.05  # after a writer closed the file: it may write on in a second go
_NETWORK = frozenset({"9p", "afs", "ceph", "cifs", "fuse", "glusterfs", "ncpfs", "nfs", "nfs4"}
                     | {"smb2", "smb3", "smbfs", "vboxsf", "virtiofs"})  # fmt: skip


@dataclass(frozen=True)
class Arrival:
    """A picture's file as it was seen: another size or time is another picture."""

    name: str  # below the folder, with forward slashes
    size: int
    modified: int  # nanoseconds since the epoch


@dataclass
class _Pending:
    seen: Arrival
    due: float  # of a monotonic clock


@dataclass
class Arrivals:
    """What has arrived below a folder and is not done yet.

    Use it as a context manager, then ask `ready` again and again.
    """

    folder: Path
    is_done: Callable[[Arrival], bool]
    skip: tuple[Path, ...] = ()  # folders below it that are not looked into
    settle_seconds: float = 1.0
    poll_seconds: float | None = None  # None: as the kernel tells, where it does
    log: Callable[[str], None] = print
    _events: queue.Queue[tuple[str, bool]] = field(
        default_factory=lambda: queue.Queue(maxsize=_MOST_PENDING)
    )
    _pending: dict[str, _Pending] = field(default_factory=dict)
    _look_at: float = 0.0
    _observer: Any = None

    def __enter__(self) -> Arrivals:
        self.folder = self.folder.resolve()
        self.skip = tuple(path.resolve() for path in self.skip)
        if self.poll_seconds is None and is_network(self.folder):
            self.poll_seconds = POLL_SECONDS
            self.log(f"a network folder: looked through every {POLL_SECONDS:g} s")
        if self.poll_seconds is None:
            self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()

    def ready(self, wait_seconds: float) -> list[Arrival]:
        """Pictures that are whole, in the order they were noticed; waits so long for the first.

        Raises:
            DataError: the folder has gone.
        """
        end = time.monotonic() + wait_seconds
        while True:
            now = time.monotonic()
            if now >= self._look_at:
                self._look(now)
            found = self._settled(now)
            if found or now >= end:
                return found
            due = [pending.due for pending in self._pending.values()]
            self._hear(max(0.0, min([end, self._look_at, *due]) - now))

    @property
    def is_idle(self) -> bool:
        """Whether nothing settles."""
        return not self._pending and self._events.empty()

    def look_soon(self) -> None:
        """Look through the whole folder at the next occasion."""
        self._look_at = 0.0

    def _listen(self) -> None:
        from watchdog.events import (
            DirCreatedEvent,
            DirMovedEvent,
            FileClosedEvent,
            FileCreatedEvent,
            FileMovedEvent,
            FileSystemEvent,
            FileSystemEventHandler,
        )
        from watchdog.observers import Observer

        arrivals = self

        class Handler(FileSystemEventHandler):
            """Hands the names on; runs in watchdog's thread."""

            def on_any_event(self, event: FileSystemEvent) -> None:
                if event.is_directory:
                    arrivals.look_soon()
                    return
                closed = isinstance(event, (FileClosedEvent, FileMovedEvent))
                path = os.fsdecode(event.dest_path or event.src_path)
                try:
                    arrivals._events.put_nowait((path, closed))
                except queue.Full:
                    arrivals.look_soon()

        kinds = [FileClosedEvent, FileMovedEvent, FileCreatedEvent, DirCreatedEvent, DirMovedEvent]
        self._observer = Observer()
        self._observer.schedule(Handler(), str(self.folder), recursive=True, event_filter=kinds)
        try:
            self._observer.start()
        except OSError as error:  # no inotify here, or as many watches as the system gives
            self._observer = None
            self.poll_seconds = POLL_SECONDS
            self.log(f"the kernel does not tell of files ({error.strerror}): looked through every "
                     f"{POLL_SECONDS:g} s")  # fmt: skip

    def _hear(self, seconds: float) -> None:
        """Wait for an event, and take what else came."""
        with_wait = True
        while len(self._pending) < _MOST_PENDING:
            try:
                path, closed = self._events.get(timeout=seconds) if with_wait else (
                    self._events.get_nowait()
                )  # fmt: skip
            except queue.Empty:
                return
            with_wait = False
            name = os.path.relpath(path, self.folder).replace(os.sep, "/")
            if name.startswith("../") or self._is_left_out(name):
                continue
            self._notice(name, _CLOSED_SECONDS if closed else self.settle_seconds)
        if with_wait:
            time.sleep(min(seconds, 0.05))

    def _look(self, now: float) -> None:
        every = LOOK_SECONDS if self.poll_seconds is None else self.poll_seconds
        self._look_at = now + every
        for name in self._names(""):
            if len(self._pending) >= _MOST_PENDING:
                self._look_at = now + self.settle_seconds
                return
            if name not in self._pending:
                self._notice(name, self.settle_seconds)

    def _names(self, below: str) -> Iterator[str]:
        try:
            with os.scandir(self.folder / below) as entries:
                for entry in entries:
                    name = below + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if not self._is_skipped(name) and not entry.name.startswith("."):
                            yield from self._names(name + "/")
                    elif _is_picture(entry.name):
                        yield name
        except OSError as error:
            if not below:
                raise DataError(
                    f"cannot list the folder: {error.strerror}",
                    where=str(self.folder),
                    remedy="make it readable",
                ) from error
            self.log(f"cannot list {below}: {error.strerror}")

    def _is_left_out(self, name: str) -> bool:
        *folders, last = name.split("/")
        hidden = any(part.startswith(".") for part in folders)
        inside = any(self._is_skipped("/".join(folders[:n])) for n in range(1, len(folders) + 1))
        return hidden or inside or not _is_picture(last)

    def _is_skipped(self, name: str) -> bool:
        return bool(self.skip) and self.folder / name in self.skip

    def _notice(self, name: str, seconds: float) -> None:
        seen = self.seen(name)
        if seen is not None and not self.is_done(seen):
            self._pending[name] = _Pending(seen, time.monotonic() + seconds)

    def _settled(self, now: float) -> list[Arrival]:
        found = []
        for name, pending in list(self._pending.items()):
            if pending.due > now:
                continue
            seen = self.seen(name)
            if seen == pending.seen and seen is not None:
                found.append(seen)
            if seen is None or seen == pending.seen:
                del self._pending[name]
            else:
                self._pending[name] = _Pending(seen, now + self.settle_seconds)
        return found

    def seen(self, name: str) -> Arrival | None:
        """A file as it is now; None where it is gone, empty, or no plain file."""
        try:
            found = os.lstat(self.folder / name)
        except OSError:
            return None
        if not stat.S_ISREG(found.st_mode) or not found.st_size:
            return None  # an empty file is one that somebody is about to write
        return Arrival(name, found.st_size, found.st_mtime_ns)


def _is_picture(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def is_network(folder: Path) -> bool:
    """Whether a folder lies on a file system that other machines write to without a word."""
    kind, longest = "", -1
    try:
        with open("/proc/self/mounts", encoding="utf-8", errors="replace") as stream:
            for line in stream:
                _, place, found, *_ = line.split(" ")
                place = place.replace("\\040", " ")
                within = place == "/" or f"{folder}/".startswith(place.rstrip("/") + "/")
                if within and len(place) >= longest:
                    kind, longest = found, len(place)
    except OSError:
        return False
    return kind.partition(".")[0] in _NETWORK
