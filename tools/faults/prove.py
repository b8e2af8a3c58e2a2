"""Cut commands short at every operation, and compare what is left with before and after.

One run of a command gives what each kill or power cut at each of its operations leaves, without
stopping it; what differs is judged once. Where an operation fails and the program goes on, the
command's part that holds it runs once more, from the folder as that part found it. A proof stands
still in time, so that states that differ in nothing but the clock are the same.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from edgeladder.core import disk
from edgeladder.core.failures import known_failure
from tools.faults.commands import Command
from tools.faults.disk import FORGETS, FaultyDisk, How, Recorder, Tree, read_tree, write_tree

Cut = tuple[int, How, float]  # at which operation, how it goes wrong, how much is forgotten
CUTS: tuple[tuple[How, float], ...] = (
    *(("killed", forget) for forget in FORGETS), ("torn", 0.0), ("full", 0.0), ("broken", 0.0)
)  # fmt: skip


@dataclass
class Proof:
    """What became of one command's cuts."""

    name: str
    operations: int
    cuts: int = 0
    states: int = 0  # that differ, after all of them
    failures: list[str] = field(default_factory=list)


class Prover:
    """One command with its states before and after, always in the same place."""

    def __init__(self, command: Command, work: Path):
        self.command, self.place = command, work / f"{command.name}-place"
        self.place.mkdir()
        self.judged: dict[Tree, str | None] = {}
        self._left: dict[tuple[int, How, float], Tree] = {}
        self._parts: list[tuple[int, Tree, Callable[[], None]]] = []  # the first operation of each
        with _still():
            if command.before is not None:
                command.before(self.place)
            self.allowed = [self._state()] if command.before and command.replaces else []
            self.operations = self._record()
            self.complete = command.state(self.place)

    def _record(self) -> int:
        """Go through the command once; the number of its operations."""
        known: dict[bytes | Tree, bytes | Tree] = {}  # one copy of each file, in all trees

        def shared(tree: Tree) -> Tree:
            parts = ((name, shared(c) if isinstance(c, Tree) else c) for name, c in tree)
            whole = Tree((name, known.setdefault(content, content)) for name, content in parts)
            found = known.setdefault(whole, whole)
            assert isinstance(found, Tree)
            return found

        def take(at: int, how: How, forget: float, left: Tree) -> None:
            self._left[at, how, forget] = shared(left)

        recorder = Recorder(self.place, take)
        with disk.using(recorder):
            for part in self.command.parts(self.place):
                self._parts.append((recorder.count, shared(read_tree(self.place)), part))
                part()
        recorder.close()
        return recorder.count

    def prove(self, cuts: Iterable[Cut], say: Callable[[str], None] = lambda _: None) -> Proof:
        """Each cut leaves what was before or is complete, and the command again completes it.

        Args:
            cuts: which.
            say: is told now and then how far it is.
        """
        proof = Proof(self.command.name, self.operations)
        began = time.monotonic()
        for at, how, forget in cuts:
            proof.cuts += 1
            with _still():
                wrong = self.cut(at, how, forget)
            if wrong is not None:
                proof.failures.append(f"operation {at}, {how}, forgets {forget:g}: {wrong}")
            if time.monotonic() - began > 60:
                began = time.monotonic()
                say(f"{proof.cuts} cuts, {len(self.judged)} states, {len(proof.failures)} failures")
        proof.states = len(self.judged)
        return proof

    def cut(self, at: int, how: How, forget: float) -> str | None:
        """None where all is well, else what is not."""
        if how in ("killed", "torn"):
            left = self._left.get((at, how, forget))
            return None if left is None else self._judge(left)  # only writes are torn
        first, start, part = next(p for p in reversed(self._parts) if p[0] <= at)
        write_tree(self.place, start)
        failing = FaultyDisk(None, at - first, how)
        try:
            with disk.using(failing):
                part()
        except Exception as error:
            known = known_failure(error)  # as a worker and the command line explain it
            if known is None or known.exit_code != 7:
                return f"a disk's error ends as {type(error).__name__}: {error}"
        return self._judge(read_tree(self.place))

    def _judge(self, left: Tree) -> str | None:
        if left not in self.judged:
            self.judged[left] = self._wrong(left)
        return self.judged[left]

    def _wrong(self, left: Tree) -> str | None:
        write_tree(self.place, left)
        if self.allowed and self._state() not in [*self.allowed, self.complete]:
            return "neither as before nor complete"
        try:
            for part in self.command.parts(self.place):
                part()
            found = self.command.state(self.place)
        except Exception as error:
            return f"the same command again ends as {type(error).__name__}: {error}"
        return None if found == self.complete else "the same command again gives another result"

    def _state(self) -> Any:
        try:
            return self.command.state(self.place)
        except Exception as error:
            return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _still() -> Iterator[None]:
    """The time of day stands still, and what is measured takes a millisecond.

    No memory is given back: in a process that does it a thousand times that takes longest of all.
    """
    ticks = itertools.count()
    with (
        mock.patch("time.time", lambda: 1e9),
        mock.patch("time.perf_counter", lambda: next(ticks) / 1000),
        mock.patch("gc.collect", lambda *_: 0),
        mock.patch("edgeladder.core.trim.drop_clean_pages"),
    ):
        yield


def every(operations: int) -> list[Cut]:
    """Every operation with every kind of cut."""
    return [(at, how, forget) for at in range(operations) for how, forget in CUTS]


def sample(operations: int, count: int, seed: int) -> list[Cut]:
    """Some of them, fixed by a seed; the last operation among them."""
    chance = random.Random(seed)
    chosen = chance.sample(every(operations), min(count, len(CUTS) * operations))
    return [*chosen, (operations - 1, "killed", 1.0)]
