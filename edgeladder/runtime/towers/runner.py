"""Running a frozen tower: one segment at a time over a group, or whole.

Segment by segment, one block's weights are in memory at a time: each segment is opened once per
group and run over all its samples, hidden states waiting on disk in between. The group pays for
opening the segments; the batch decides the memory. Whole, all segments stay open and samples pass
through without touching the disk. A provider that is not the CPU's runs the tower in one piece
(`accelerated_tower`). Which it is, and the sizes, is for `budget/` to say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgeladder.core.bundle import Side
from edgeladder.core.manifest import rows_at_once
from edgeladder.core.provider import ProviderChoice
from edgeladder.core.trim import trim_heap
from edgeladder.runtime.cache.layout import EMBEDDING, EMBEDDING_PRE
from edgeladder.runtime.towers.accelerated_tower import AcceleratedTower
from edgeladder.runtime.towers.lanes import Lanes
from edgeladder.runtime.towers.spill import SpillFile

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from edgeladder.core.bundle import Bundle
    from edgeladder.core.manifest import SegmentRecord, TowerRecord

_SINK_SAMPLES = 16  # handed on at a time
SOURCE_NAMES = {"image": "pixels", "text": "tokens"}


@dataclass(frozen=True)
class TowerSizes:
    """How a tower is run; results depend on the provider, and on nothing else to the last bit.

    But where threads share one run (`pool` above 1): the kernel of an embedding's few rows then
    depends on how they are shared out, and its last bit with it.
    """

    group: int = 128  # samples per opening of the segments; more: less time opening, more disk
    batch: int = 1  # samples per run of a segment; more: more memory, hardly faster on few cores
    threads: int = 2
    lanes: int = 1  # runs of a segment at once, which share threads and batch
    whole: bool = False  # all segments open at once
    spin: bool = True  # waiting threads spin, a sixth faster; off where other work needs the cores
    provider: ProviderChoice = ProviderChoice()
    gpu_limit_bytes: int | None = None  # that a provider may take on a GPU

    @property
    def rows(self) -> int:
        """Samples in one lane at a time."""
        return max(1, self.batch // self.lanes)

    @property
    def pool(self) -> int:
        """Threads of a session: every lane brings its own, the rest help all of them."""
        return max(1, self.threads - self.lanes + 1)


class Samples(Protocol):
    """What a tower is fed: `read` gives the source tensor of samples start to stop."""

    @property
    def count(self) -> int:
        """Samples in all."""

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start, ..) in the dtype the first segment takes."""


class ArraySamples:
    """An array as a tower's samples."""

    def __init__(self, values: np.ndarray):
        self.values = values
        self.count = len(values)

    def read(self, start: int, stop: int) -> np.ndarray:
        """A window of the array."""
        return self.values[start:stop]


Sink = Callable[[int, dict[str, np.ndarray]], None]
"""Called in order with the first sample's index and the wanted outputs, (n, ..) each by name:
each tap's, `embedding` and, where the tower has one, `embedding_pre`."""

OnBatch = Callable[[float], None]
"""Called with the samples' worth of work done since the last call; may raise to stop."""


def wanted_outputs(tower: TowerRecord, side: Side) -> dict[str, str]:
    """Tensor name -> the name it is handed on by."""
    wanted = {tap.name: tap.name for tap in tower.taps}
    wanted[tower.embedding] = EMBEDDING
    if tower.embedding_pre and side == "image":
        wanted[tower.embedding_pre] = EMBEDDING_PRE
    return wanted


class TowerRunner:
    """Runs one tower of a bundle over samples, a group at a time."""

    def __init__(self, bundle: Bundle, side: Side, sizes: TowerSizes, workdir: Path):
        self.sizes = sizes
        self.workdir = workdir
        self._bundle = bundle
        self._tower: TowerRecord = getattr(bundle.manifest, side)
        self._source = SOURCE_NAMES[side]
        self._wanted = wanted_outputs(self._tower, side)
        self._side = side
        self._sessions: list[InferenceSession] = []  # whole: all of them, kept between groups
        self._accelerated: AcceleratedTower | None = None
        self._lanes = Lanes(sizes.lanes)

    def run(self, samples: Samples, sink: Sink, on_batch: OnBatch | None = None) -> None:
        """Pass all samples through the tower, `sizes.group` at a time.

        Raises:
            StorageError: no space for the hidden states; the sink keeps what it was given.
            IntegrityError: a segment cannot be loaded.
            ConfigError: the provider cannot run it.
        """
        tick = on_batch or (lambda samples_done: None)
        if self.sizes.provider.accelerates:
            self._run_accelerated(samples, sink, tick)
            return
        if self.sizes.whole:
            self._run_whole(samples, sink, tick)
            return
        for start in range(0, samples.count, self.sizes.group):
            stop = min(samples.count, start + self.sizes.group)
            self._run_group(samples, start, stop, sink, tick)

    def close(self) -> None:
        """Close the sessions."""
        self._lanes.close()
        self._sessions, self._accelerated = [], None
        trim_heap()

    def _session(self, segment: SegmentRecord) -> InferenceSession:
        # here, because onnxruntime costs processes that only name the sizes 30 MB
        from edgeladder.runtime import session

        sizes, path = self.sizes, self._bundle.path(segment.file)
        arena: session.Arena | None = "own"
        if sizes.whole:
            # before the heap, which makes onnxruntime's environment
            session.share_threads(sizes.pool)
            arena = "shared" if session.share_arena() else None
        return session.open_segment(
            path, sizes.pool, spin=sizes.spin, arena=arena, widen=segment.convolves
        )

    # ---- whole

    def _run_whole(self, samples: Samples, sink: Sink, tick: OnBatch) -> None:
        if not self._sessions:
            self._sessions = [self._session(segment) for segment in self._tower.segments]
        read = (samples.read(*window) for window in _windows(samples.count, self.sizes.rows))
        start = 0
        for outputs in self._lanes.map(self._pass_whole, read):
            count = len(outputs[EMBEDDING])
            sink(start, outputs)
            tick(count)
            start += count

    def _pass_whole(self, source: np.ndarray) -> dict[str, np.ndarray]:
        """A batch through all segments, in whichever thread."""
        tensors = {self._source: source}
        outputs: dict[str, np.ndarray] = {}
        for index, segment in enumerate(self._tower.segments):
            tensors.update(self._outputs(self._sessions[index], segment, tensors))
            self._collect(tensors, outputs)
            needed = self._needed_after(index)
            tensors = {name: array for name, array in tensors.items() if name in needed}
        return outputs

    def _collect(self, tensors: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> None:
        for name, handed_on in self._wanted.items():
            if name in tensors:
                outputs[handed_on] = tensors[name]

    def _needed_after(self, index: int) -> set[str]:
        later = self._tower.segments[index + 1 :]
        return {item.name for segment in later for item in segment.inputs}

    def _outputs(
        self, session: InferenceSession, segment: SegmentRecord, tensors: dict[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """A segment's outputs by name, of the samples in `tensors`."""
        names = [item.name for item in segment.outputs]
        feeds = {item.name: tensors[item.name] for item in segment.inputs}
        count = len(next(iter(feeds.values())))
        missing = rows_at_once(self._tower, segment, count) - count
        if missing:
            feeds = {name: np.concatenate([x, x[-1:]]) for name, x in feeds.items()}
        found = session.run(names, feeds)
        return {name: array[:count] for name, array in zip(names, found, strict=True)}

    # ---- on another provider

    def _run_accelerated(self, samples: Samples, sink: Sink, tick: OnBatch) -> None:
        sizes = self.sizes
        if self._accelerated is None and samples.count:
            self._accelerated = AcceleratedTower(
                self._bundle,
                self._side,
                sizes.provider.name,
                # a picture that comes alone is answered sooner by itself
                batch=1 if samples.count == 1 else sizes.batch,
                threads=sizes.threads,
                memory_bytes=sizes.gpu_limit_bytes,
            )
        for start, stop in _windows(samples.count, self._batch_open()):
            assert self._accelerated is not None
            found = self._accelerated.run(samples.read(start, stop), list(self._wanted))
            sink(start, {self._wanted[name]: array for name, array in found.items()})
            tick(stop - start)

    def _batch_open(self) -> int:
        return self._accelerated.batch if self._accelerated is not None else self.sizes.batch

    # ---- segment by segment

    def _run_group(
        self, samples: Samples, start: int, stop: int, sink: Sink, tick: OnBatch
    ) -> None:
        with _SpillFiles(self.workdir) as spills:
            for index, segment in enumerate(self._tower.segments):
                session = self._session(segment)
                self._pass_segment(session, index, samples, (start, stop), spills, tick)
                del session
                # the block's packed weights go back before the next block's come
                trim_heap(collect=False)
                needed = self._needed_after(index) | set(self._wanted)
                spills.discard_all_but(needed)
            for first, last in _windows(stop - start, _SINK_SAMPLES):
                sink(
                    start + first,
                    {
                        handed_on: spills.get(name).read(first, last)
                        for name, handed_on in self._wanted.items()
                    },
                )

    def _pass_segment(
        self,
        session: InferenceSession,
        index: int,
        samples: Samples,
        group: tuple[int, int],
        spills: _SpillFiles,
        tick: OnBatch,
    ) -> None:
        segment = self._tower.segments[index]
        share = 1 / len(self._tower.segments)
        kept = self._needed_after(index) | set(self._wanted)

        def fed(window: tuple[int, int]) -> dict[str, np.ndarray]:
            first, last = window
            return {
                item.name: samples.read(group[0] + first, group[0] + last)
                if item.name == self._source
                else spills.get(item.name).read(first, last)
                for item in segment.inputs
            }

        def passed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return self._outputs(session, segment, tensors)

        windows = list(_windows(group[1] - group[0], self.sizes.rows))
        every = self._lanes.map(passed, map(fed, windows))
        for (first, last), found in zip(windows, every, strict=True):
            for name, array in found.items():
                if name in kept:
                    spills.make(name).append(array)
            tick((last - first) * share)


class _SpillFiles:
    """The spills of a group by tensor name; all removed at the end, whatever happens."""

    def __init__(self, workdir: Path):
        self._workdir = workdir
        self._spills: dict[str, SpillFile] = {}
        self._made = 0

    def __enter__(self) -> _SpillFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard_all_but(set())

    def make(self, name: str) -> SpillFile:
        if name not in self._spills:
            self._spills[name] = SpillFile(self._workdir / f"{self._made:04d}.spill")
            self._made += 1
        return self._spills[name]

    def get(self, name: str) -> SpillFile:
        return self._spills[name]

    def discard_all_but(self, kept: set[str]) -> None:
        for name in set(self._spills) - kept:
            self._spills.pop(name).discard()


def _windows(count: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, size):
        yield start, min(count, start + size)
