"""One pass over pictures: hash, look up, decode what is missing, run the image tower, cache.

Where the plan keeps the whole tower open it counts a picture's decoding beside it, so the next
pictures are decoded while the tower works on those before. Segment by segment there is one or the
other. The samples, their order and their bits are the same.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeladder.core.errors import DataError
from edgeladder.runtime.cache.layout import EMBEDDING
from edgeladder.runtime.cache.store import ActivationCache, sample_key
from edgeladder.runtime.pictures.dataset import Picture
from edgeladder.runtime.pictures.decode import EXACT_PIXELS, decoding_scale, normalize
from edgeladder.runtime.pictures.decode_watch import DecodeWatch
from edgeladder.runtime.pictures.reduction import large_scale
from edgeladder.runtime.pictures.sources import UnreadableError
from edgeladder.runtime.pictures.views import VERSION, view_square
from edgeladder.runtime.towers.runner import TowerRunner, TowerSizes
from edgeladder.runtime.towers.spill import SpillFile
from edgeladder.runtime.towers.tower_lane import TowerLane

if TYPE_CHECKING:
    from edgeladder.core.bundle import Bundle

SKIPPED_SHARE = 0.05  # more unreadable pictures than this is an error
_NAMED = 20  # skipped pictures spelt out in an error
_HANDED = 32  # samples that a whole tower is given at a time: it starts early, and seldom waits

Progress = Callable[[int, int, str], None]  # done, total, what


def spell_skipped(skipped: list[dict[str, str]]) -> str:
    """The first few skipped pictures and why."""
    named = [f"{item['path']}: {item['reason']}" for item in skipped[:_NAMED]]
    more = len(skipped) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")


@dataclass(frozen=True)
class PictureGuard:
    """What no picture may do to a run: take more memory than there is, or stop it twice."""

    max_pixels: int = EXACT_PIXELS  # decoded in full
    max_bytes: int | None = None  # of memory while one is decoded; None: no limit
    watch: DecodeWatch = field(default_factory=DecodeWatch)


class _Group:
    """Decoded pictures, as the image tower's samples."""

    def __init__(self, path: Path, preprocess: Any):
        self._spill = SpillFile(path)
        self._preprocess = preprocess
        self.keys: list[bytes] = []

    @property
    def count(self) -> int:
        return len(self.keys)

    def append(self, key: bytes, square: np.ndarray) -> None:
        self._spill.append(square[None])
        self.keys.append(key)

    def read(self, start: int, stop: int) -> np.ndarray:
        return normalize(self._spill.read(start, stop), self._preprocess)

    def discard(self) -> None:
        self._spill.discard()


class PictureRun:
    """One pass over the pictures."""

    def __init__(
        self,
        bundle: Bundle,
        cache: ActivationCache,
        sizes: TowerSizes,
        guard: PictureGuard,
        workdir: Path,
        on_group: Callable[[], None] | None,
    ):
        self.skipped: list[dict[str, str]] = []
        self.new = self.reused = 0
        self._preprocess = bundle.manifest.preprocess
        self._sizes = sizes
        self._guard = guard
        self._workdir = workdir
        self._on_group = on_group or (lambda: None)
        self._cache = cache
        self._runner = TowerRunner(bundle, "image", sizes, workdir)
        self._beside = sizes.whole  # decoding beside the tower: the plan has room for both
        self._lane = TowerLane()
        self._cache_lock = threading.Lock()  # the tower's thread writes what this one looks up
        self._group: _Group | None = None  # that pictures are added to
        self._at_work: _Group | None = None  # that the tower has
        self._unwritten = 0  # samples since the last flush
        self._done = self._passed = 0.0  # samples that needed no tower, and that passed it
        self._told = 0
        self._total = 0
        self._progress: Progress | None = None

    def run(
        self, wanted: list[tuple[Picture, int]], where: str, progress: Progress | None
    ) -> list[list[bytes]]:
        """Keys of each picture's views 0..n; an empty list for a picture that was skipped."""
        self._progress = progress
        self._total = sum(views + 1 for _, views in wanted)
        allowed = SKIPPED_SHARE * len(wanted)
        found: list[list[bytes]] = []
        with self._cache.writing():
            try:
                for number, (picture, views) in enumerate(wanted, 1):
                    found.append(self._one(picture, views))
                    if len(self.skipped) > allowed:
                        raise self._too_many([item for item, _ in wanted], number, where)
                self._run_group()
                self._await_tower()
                self._flush()
            finally:
                self._lane.stop()
                self._discard()
                self._runner.close()
        if progress is not None and self._total:
            progress(self._total, self._total, self._summary())
        return found

    def _summary(self) -> str:
        """What there was to do: `501 cached, 5 new`."""
        words = f"{self.reused} cached, {self.new or 'nothing'} new"
        return f"{words}, {len(self.skipped)} unreadable" if self.skipped else words

    def _too_many(self, pictures: list[Picture], looked: int, where: str) -> DataError:
        """The error that names all unreadable pictures at once, as far as it names any.

        Those not reached yet are decoded, but no tower runs: the answer is no already.
        """
        for picture in pictures[looked:]:
            if len(self.skipped) >= _NAMED:
                break
            looked += 1
            self._look(picture)
        count = f"{'' if looked == len(pictures) else 'at least '}{len(self.skipped)}"
        return DataError(
            f"{count} of {len(pictures)} pictures cannot be read; "
            f"up to {SKIPPED_SHARE:.0%} would be skipped",
            where=f"{where}: {spell_skipped(self.skipped)}",
            remedy="replace or remove these pictures; what is cached is kept",
        )

    def _look(self, picture: Picture) -> None:
        """Whether a picture can be read; what it shows is let go."""
        self._tick(1, picture.path)  # orders are heard in here
        try:
            content = picture.read(self._guard.max_bytes)
            key = self._key(content, hashlib.sha256(content).digest(), 0)
            if not self._has(key):
                self._guard.watch.begins(picture.path)
                self._square(content, 0)
        except UnreadableError as error:
            self.skipped.append({"path": picture.path, "reason": str(error)})

    def _one(self, picture: Picture, views: int) -> list[bytes]:
        """Hash, look up, decode what is missing."""
        try:
            self._guard.watch.refuse(picture.path)
            content = picture.read(self._guard.max_bytes)
            digest = hashlib.sha256(content).digest()
            keys = [self._key(content, digest, view) for view in range(views + 1)]
            missing = [view for view, key in enumerate(keys) if not self._has(key)]
            # one view at a time: all of them would not fit
            for view in missing:
                self._guard.watch.begins(picture.path)
                self._add(keys[view], self._square(content, view))
        except UnreadableError as error:
            self.skipped.append({"path": picture.path, "reason": str(error)})
            self._tick(views + 1, picture.path)
            return []
        self.reused += len(keys) - len(missing)
        self._tick(len(keys) - len(missing), picture.path)
        return keys

    def _square(self, content: bytes, view: int) -> np.ndarray:
        return view_square(
            content,
            self._preprocess,
            view,
            max_pixels=self._guard.max_pixels,
            max_bytes=self._guard.max_bytes,
        )

    def _key(self, content: bytes, digest: bytes, view: int) -> bytes:
        """Of the picture as it is decoded where it fits, or is cached; else as the budget makes it.

        Raises:
            UnreadableError: not a picture, or too large for the budget at any scale.
        """
        for scale in dict.fromkeys((1, large_scale(content, self._preprocess.size))):
            key = sample_key(digest, view, VERSION, scale=scale)
            if self._has(key):
                return key
        guard, size = self._guard, self._preprocess.size
        scale = decoding_scale(
            content,
            size,
            max_pixels=guard.max_pixels,
            max_bytes=guard.max_bytes,
            view=view > 0,
        )
        return sample_key(digest, view, VERSION, scale=scale)

    def _has(self, key: bytes) -> bool:
        groups = (self._group, self._at_work)
        if any(group is not None and key in group.keys for group in groups):
            return True
        with self._cache_lock:
            return key in self._cache

    def _add(self, key: bytes, square: np.ndarray) -> None:
        if self._group is None:
            self._group = _Group(self._workdir / "pixels.spill", self._preprocess)
        self._group.append(key, square)
        if self._group.count >= self._full():
            self._run_group()

    def _full(self) -> int:
        """Samples of a group; whole batches of a whole tower."""
        batch = self._sizes.batch
        handed = max(1, _HANDED // batch) * batch
        return min(handed, self._sizes.group) if self._beside else self._sizes.group

    def _run_group(self) -> None:
        """Give the tower the group; beside it, once it is done with the group before."""
        if self._group is None:
            return
        self._await_tower()
        group = self._at_work = self._group
        self._group = None
        if self._beside:
            self._lane.start(lambda: self._pass_tower(group))
            return
        self._guard.watch.over()
        self._pass_tower(group)
        self._finish()

    def _pass_tower(self, group: _Group) -> None:
        """A group through the tower into the cache; perhaps in the tower's own thread."""

        def sink(start: int, outputs: dict[str, np.ndarray]) -> None:
            count = len(outputs[EMBEDDING])
            with self._cache_lock:
                self._cache.put(group.keys[start : start + count], outputs)

        def passed(samples: float) -> None:
            self._passed += samples
            if self._beside:
                self._lane.go_on()
            else:
                self._tell("backbone")

        self._runner.run(group, sink, passed)

    def _await_tower(self) -> None:
        """Until the tower is done with its group."""
        if self._at_work is None:
            return
        self._guard.watch.over()  # what a wait ends in is no picture's doing
        self._lane.wait(lambda: self._tell("backbone"))
        self._finish()

    def _finish(self) -> None:
        """A group has passed the tower: let it go, and now and then write what came of them."""
        assert self._at_work is not None
        self._unwritten += self._at_work.count
        self._at_work.discard()
        self._at_work = None
        if self._unwritten >= self._sizes.group:
            self._flush()

    def _flush(self) -> None:
        if self._unwritten:
            self._cache.flush()
            self.new += self._unwritten
            self._unwritten = 0
            self._on_group()

    def _discard(self) -> None:
        for group in (self._group, self._at_work):
            if group is not None:
                group.discard()
        self._group = self._at_work = None

    def _tick(self, samples: float, note: str) -> None:
        self._done += samples
        self._tell(note)

    def _tell(self, note: str) -> None:
        """Say how far it is, where that is news; orders are heard in here."""
        done = round(self._done + self._passed)
        if self._progress is None or done == self._told:
            return
        self._told = done
        if done < self._total:
            self._progress(done, self._total, note)  # the last word is `_summary`
