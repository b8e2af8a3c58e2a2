"""Runs inputs in processes that may hang, crash or fill the memory without taking the tool along.

Input number n of a target is fixed by n, so that a run goes on where an earlier one stopped and a
finding is made again by its number.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.fuzz.mutate import mutate
from tools.fuzz.targets import Target, accepted

_BATCH = 500  # inputs of one process
_POLL_SECONDS = 0.02
_WAITS = 30  # so many times its processor time an input may take, asleep or on a busy machine
_MEMORY_BYTES = 2 << 30  # that an input may take


@dataclass(frozen=True)
class Finding:
    """An input that ended in something else than a refusal or a right result."""

    target: str
    number: int  # of the input; -1: of the corpus
    signature: str  # where and how: findings of one signature are one defect


def corpus(target: Target, folder: Path) -> list[bytes]:
    """Inputs that were findings once."""
    return [path.read_bytes() for path in sorted((folder / target.name).glob("*"))]


def input_number(target: Target, number: int, seeds: list[bytes]) -> bytes:
    """The input of a number."""
    chance = random.Random(f"{target.name}/{number}")
    return mutate(seeds[number % len(seeds)], target.form, chance, seeds)


@contextlib.contextmanager
def workplace(bundle: Path) -> Iterator[Path]:
    """A folder in memory with a copy of the bundle, whose files inputs are linked with."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="edgeladder-fuzz-", dir=memory if memory.is_dir() else None
    ) as folder:
        yield Path(shutil.copytree(bundle, Path(folder) / "bundle")).parent


@contextlib.contextmanager
def _empty_folder(place: Path) -> Iterator[Path]:
    folder = tempfile.mkdtemp(prefix="input-", dir=place)
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def judge(target: Target, content: bytes, right: list[Any], place: Path) -> str | None:
    """The oracle: None where an input ended as it may, else what was wrong.

    Args:
        target: the parser.
        content: the input.
        right: what the seeds give; of a sealed target nothing else may come out.
        place: a `workplace`.
    """
    try:
        with _empty_folder(place) as folder:
            found = target.parse(content, folder)
    except Exception as error:
        if accepted(error):
            str(error).encode("utf-8", "backslashreplace")
            return None
        return signature(error)
    if target.sealed and found not in right:
        return "a changed file was taken for right"
    return None


def signature(error: BaseException) -> str:
    """Type and innermost place in the package: what one defect's findings have in common."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/edgeladder/" in frame.filename]
    place = (own or frames)[-1]
    where = f"{Path(place.filename).name}:{place.name}"
    return f"{type(error).__name__} in {where}"


def _limit_memory() -> None:
    with open("/proc/self/statm", encoding="ascii") as stream:
        used = int(stream.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY_BYTES, used + _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _cpu_seconds(child: int) -> float:
    """Processor time of a process: a busy machine is no finding."""
    with open(f"/proc/{child}/stat", encoding="ascii") as stream:
        fields = stream.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Runner:
    """One target with its seeds."""

    def __init__(self, target: Target, place: Path, corpus_folder: Path, seconds: float):
        self.target, self.place = target, place
        good = target.seeds(place / "bundle")
        self.right: list[Any] = []
        for content in good:
            with _empty_folder(place) as folder:
                self.right.append(target.parse(content, folder))
        self.known = corpus(target, corpus_folder)
        self.seeds = [*good, *self.known]
        self.seconds = seconds
        self._shared = mmap.mmap(-1, 16)  # the number in work, and when it was begun

    def content(self, number: int) -> bytes:
        """The input of a number, or of the corpus where it is below zero."""
        if number < 0:
            return self.known[-1 - number]
        return input_number(self.target, number, self.seeds)

    def run(self, first: int, last: int, found: Callable[[Finding], None]) -> None:
        """Inputs first to last (not with it)."""
        while first < last:
            first = self._batch(first, min(last, first + _BATCH), found)

    def _batch(self, first: int, last: int, found: Callable[[Finding], None]) -> int:
        """One process; the number after the last that it came to."""
        reading, writing = os.pipe()
        self._shared[:] = struct.pack("<qd", first, time.monotonic())
        child = os.fork()
        if not child:
            os.close(reading)
            self._work(first, last, writing)
        os.close(writing)
        status, hung = self._wait(child)
        with os.fdopen(reading, "rb") as stream:
            for line in stream:
                found(Finding(self.target.name, *json.loads(line)))
        if not status:
            return last
        number = struct.unpack("<qd", self._shared[:])[0]
        how = "it hangs" if hung else f"the process died of signal {status & 0x7F}"
        if not hung and not status & 0x7F:
            how = f"the process ended with code {status >> 8}"
        found(Finding(self.target.name, number, how))
        return int(number) + 1

    def _work(self, first: int, last: int, writing: int) -> None:
        """The child: never returns."""
        code = 3
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)  # C libraries write to the descriptors
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            _limit_memory()
            for number in range(first, last):
                self._shared[:] = struct.pack("<qd", number, time.monotonic())
                wrong = judge(self.target, self.content(number), self.right, self.place)
                if wrong is not None:
                    os.write(writing, json.dumps([number, wrong]).encode() + b"\n")
            code = 0
        finally:
            os._exit(code)  # nothing of the parent's is undone here

    def _wait(self, child: int) -> tuple[int, bool]:
        known, before = None, 0.0
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return status, False
            number, began = struct.unpack("<qd", self._shared[:])
            if number != known:
                known, before = number, _cpu_seconds(child)
            waited = time.monotonic() - began > _WAITS * self.seconds
            if waited or _cpu_seconds(child) - before > self.seconds:
                os.kill(child, signal.SIGKILL)
                return os.waitpid(child, 0)[1], True
            time.sleep(_POLL_SECONDS)

    def fails(self, content: bytes) -> str | None:
        """What is wrong with one input, judged in a process of its own."""
        found: list[str] = []
        self.known.append(content)
        try:
            number = -len(self.known)
            self._batch(number, number + 1, lambda finding: found.append(finding.signature))
        finally:
            self.known.pop()
        return found[0] if found else None

    def minimised(self, content: bytes, wrong: str, seconds: float = 20.0) -> bytes:
        """A smaller input with the same signature: pieces are left out while it stays."""
        until = time.monotonic() + seconds
        size = len(content) // 2
        while size and time.monotonic() < until:
            at = 0
            while at < len(content) and time.monotonic() < until:
                shorter = content[:at] + content[at + size :]
                if self.fails(shorter) == wrong:
                    content = shorter
                else:
                    at += size
            size //= 2
        return content
