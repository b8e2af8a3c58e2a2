"""`edgeladder watch`: pictures that arrive in a folder are labelled, noted and put in place."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError  # noqa: A004 - Python 3.10 has two of them
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from edgeladder.budget.policy import PICTURE_DEATHS
from edgeladder.core.errors import ConfigError, Interrupted
from edgeladder.core.files import storage_errors
from edgeladder.core.inference import InferenceRequest, Prediction
from edgeladder.core.memory_record import MemoryResult
from edgeladder.core.printable import one_line
from edgeladder.jobs.service import Service, WorkerEndedError
from edgeladder.serve.arrivals import Arrival, Arrivals
from edgeladder.serve.camera import FRAME
from edgeladder.serve.camera_process import CAMERA_BYTES, Camera
from edgeladder.serve.journal import Entry, Journal
from edgeladder.serve.placing import Places, place
from edgeladder.serve.signals import Signals

RESERVE_BYTES = 4_000_000  # of the budget: for files that settle at the same time
_AHEAD = 2  # pictures at the worker, so that it never waits for the disk
_WAIT_SECONDS = 0.5  # between two looks at signals
_DRAIN_SECONDS = 10.0  # for what is at the worker when the signal comes
_MOST_KNOWN = 4096  # characters of a name


@dataclass(frozen=True, kw_only=True)
class WatchRequest:
    """What to watch, and what becomes of it."""

    folder: Path
    out: Path
    places: Places
    poll_seconds: float | None = None
    settle_seconds: float = 1.0
    once: bool = False  # end when nothing is left to do
    source: str | None = None  # a camera, whose frames arrive in the folder
    every_seconds: float = 1.0  # between two frames
    keep: bool = False  # frames that go nowhere else

    @property
    def deletes(self) -> bool:
        """Whether what is labelled and stays is removed: frames that we made."""
        return self.source is not None and not self.keep


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What was done until it was told to end."""

    pictures: int
    unreadable: int
    unknown: int
    restarts: int  # of the worker
    memory: MemoryResult


class Watch:
    """One folder, one worker, one file of answers."""

    def __init__(self, request: WatchRequest, service: Service, log: Callable[[str], None]):
        self._request, self._service, self._log = request, service, log
        self._journal = Journal(request.out)
        self._asked: deque[tuple[Arrival, Future[Prediction]]] = deque()
        self._taken: set[str] = set()
        self._camera: Camera | None = None
        self.pictures = self.unreadable = self.unknown = 0

    def run(self, stopped: Callable[[], bool]) -> None:
        """Until told to stop; what is at the worker then is written yet."""
        request = self._request
        try:
            with contextlib.ExitStack() as stack:
                if request.source is not None:
                    camera = Camera(
                        request.source, request.folder, request.every_seconds, self._log
                    )
                    self._camera = stack.enter_context(camera)
                self._run(stopped)
        finally:
            self._journal.close()

    def _run(self, stopped: Callable[[], bool]) -> None:
        request = self._request
        self._finish_placing()
        with Arrivals(
            request.folder,
            self._journal.is_done,
            request.places.folders(),
            request.settle_seconds,
            request.poll_seconds,
            self._log,
        ) as arrivals:
            self._loop(arrivals, stopped)
            left = time.monotonic() + _DRAIN_SECONDS
            while self._asked and time.monotonic() < left:
                self._answered(arrivals)

    def _loop(self, arrivals: Arrivals, stopped: Callable[[], bool]) -> None:
        waiting: deque[Arrival] = deque()
        while not stopped():
            idle = not waiting and not self._asked
            if not waiting:
                waiting.extend(arrivals.ready(_WAIT_SECONDS if idle else 0.0))
            while waiting and len(self._asked) < _AHEAD:
                self._take(arrivals, waiting.popleft())
            if self._asked:
                self._answered(arrivals)
            elif idle and not waiting and self._is_over and arrivals.is_idle:
                return

    @property
    def _is_over(self) -> bool:
        """Whether nothing more is expected, once nothing is left."""
        if self._camera is None:
            return self._request.once
        self._camera.look()
        return self._camera.ended

    def _take(self, arrivals: Arrivals, arrival: Arrival) -> None:
        name = arrival.name
        if name in self._taken or self._journal.is_done(arrival):
            return
        if one_line(name) != name or len(name) > _MOST_KNOWN:
            self._log(f"passed over, because of its name: {one_line(name)[:200]}")
            self._journal.pass_over(arrival)
            return
        self._taken.add(name)
        path = str(arrivals.folder / name)
        self._asked.append((arrival, self._service.submit(path, self._service.top)))

    def _answered(self, arrivals: Arrivals) -> None:
        """Wait for the oldest answer, write it and put its picture in place."""
        arrival, future = self._asked[0]
        path = str(arrivals.folder / arrival.name)
        try:
            prediction = future.result(_WAIT_SECONDS)
        except TimeoutError:
            return  # a look at signals, then again
        except WorkerEndedError as error:
            why = f"the worker ended over it: {error}"
            prediction = Prediction(path=path, labels=[], error=why)
        self._asked.popleft()
        self._taken.discard(arrival.name)
        seen = arrivals.seen(arrival.name)
        if seen != arrival:
            arrivals.look_soon()  # gone, or another picture by now: that one has its own turn
            return
        if prediction.error is not None:
            self.unreadable += 1
            self._log(f"cannot be read: {arrival.name}: {prediction.error}")
        self.pictures += 1
        self.unknown += prediction.unknown
        target = self._request.places.target(arrival.name, prediction)
        self._journal.add(
            Entry(
                time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                arrival=arrival,
                labels=tuple(prediction.labels),
                known=prediction.known,
                unknown=prediction.unknown,
                error=prediction.error,
                target=None if target is None else str(target),
            )
        )
        if target is not None:
            self._place(arrivals.folder / arrival.name, arrival, target)
        elif self._request.deletes and arrival.name.startswith(FRAME):
            (arrivals.folder / arrival.name).unlink(missing_ok=True)
            self._journal.placed(arrival, is_gone=True)

    def _finish_placing(self) -> None:
        """What a crash left between its line and its place."""
        folder = self._request.folder.resolve()
        while left := self._journal.unplaced():
            for arrival, target in left:
                source = folder / arrival.name
                if source.exists():
                    self._place(source, arrival, Path(target))
                else:
                    self._journal.placed(arrival, is_gone=True)

    def _place(self, source: Path, arrival: Arrival, target: Path) -> None:
        with storage_errors(target):
            found = place(source, target, copy=self._request.places.copy)
        if found != target:
            self._log(f"{arrival.name} is at {found}: {target.name} was taken meanwhile")
        self._journal.placed(arrival, is_gone=not self._request.places.copy)


def watch(
    request: WatchRequest, inference: InferenceRequest, log: Callable[[str], None]
) -> Watched:
    """Label what is there and what arrives, until SIGTERM.

    Raises:
        ConfigError, DataError: no such folder, or answers that cannot be written there.
        StorageError: the disk is full; nothing is lost, the same command goes on.
        Interrupted: Ctrl-C.
    """
    if request.source is not None:
        with storage_errors(request.folder):
            request.folder.mkdir(parents=True, exist_ok=True)
    if not request.folder.is_dir():
        raise ConfigError(
            f"no folder at {request.folder}",
            where=f"the current folder is {Path.cwd()}",
            remedy="name the folder where pictures arrive",
        )
    with Signals() as signals:
        service = Service(
            inference,
            ends=PICTURE_DEATHS,
            reserve_bytes=RESERVE_BYTES + (CAMERA_BYTES if request.source else 0),
            log=log,
        )
        signals.then = lambda number: None if service.is_ready else service.stop_soon()
        watching = Watch(request, service, log)
        try:
            service.start()
            log(f"watching {request.folder} ({os.getpid()}), answers go to {request.out}")
            watching.run(lambda: bool(signals.came))
        except Interrupted:
            if not signals.came:
                raise
        finally:
            service.close()
        signals.raise_interrupt()
        return Watched(
            pictures=watching.pictures,
            unreadable=watching.unreadable,
            unknown=watching.unknown,
            restarts=service.use().restarts,
            memory=service.memory(),
        )
