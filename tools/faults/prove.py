"""Cut commands short at every operation, and compare what is left with before and after."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeladder.core import disk
from edgeladder.core.failures import known_failure
from tools.faults.commands import Command
from tools.faults.disk import FaultyDisk, How, PowerCut

# how an operation goes wrong, and how much of what is not certain is gone afterwards
CUTS: tuple[tuple[How, float], ...] = (
    ("killed", 0.0), ("killed", 1.0), ("killed", 0.5), ("torn", 0.0), ("full", 0.0), ("broken", 0.0)
)  # fmt: skip


@dataclass
class Proof:
    """What became of one command's cuts."""

    name: str
    operations: int
    cuts: int = 0
    failures: list[str] = field(default_factory=list)


class Prover:
    """One command with its states before and after."""

    def __init__(self, command: Command, work: Path):
        self.command, self.work = command, work
        self.start = self._folder()
        if command.before is not None:
            command.before(self.start)
        self.allowed = [self._state(self.start)] if command.before is not None else []
        whole = self._copy()
        counter = FaultyDisk(whole)
        with disk.using(counter):
            command.act(whole)
        counter.close()
        self.complete = command.state(whole)
        self.operations = counter.count
        shutil.rmtree(whole)

    def prove(self, cuts: Iterable[tuple[int, How, float]]) -> Proof:
        """Each cut at (operation, how, forget) leaves what was before or is complete."""
        proof = Proof(self.command.name, self.operations)
        for at, how, forget in cuts:
            proof.cuts += 1
            wrong = self.cut(at, how, forget)
            if wrong is not None:
                proof.failures.append(f"operation {at}, {how}, forgets {forget:g}: {wrong}")
        return proof

    def cut(self, at: int, how: How, forget: float) -> str | None:
        """None where all is well, else what is not."""
        place = self._copy()
        faulty = FaultyDisk(place, at, how)
        try:
            with disk.using(faulty):
                self.command.act(place)
        except PowerCut:
            faulty.leave(forget, random.Random(f"{at}{how}{forget}"))
        except Exception as error:
            known = known_failure(error)  # as a worker and the command line explain it
            if known is None or known.exit_code != 7:
                return f"a disk's error ends as {type(error).__name__}: {error}"
        finally:
            faulty.close()
        if self.allowed and self._state(place) not in [*self.allowed, self.complete]:
            return "neither as before nor complete"
        try:
            self.command.act(place)
            found = self.command.state(place)
        except Exception as error:
            return f"the same command again ends as {type(error).__name__}: {error}"
        if found != self.complete:
            return "the same command again gives another result"
        shutil.rmtree(place)
        return None

    def _state(self, place: Path) -> Any:
        try:
            return self.command.state(place)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.work))

    def _copy(self) -> Path:
        place = self._folder()
        shutil.copytree(self.start, place, dirs_exist_ok=True)
        return place


def every(operations: int) -> list[tuple[int, How, float]]:
    """Every operation with every kind of cut."""
    return [(at, how, forget) for at in range(operations) for how, forget in CUTS]


def sample(operations: int, count: int, seed: int) -> list[tuple[int, How, float]]:
    """Some of them, fixed by a seed; the last operation among them."""
    chance = random.Random(seed)
    chosen = chance.sample(every(operations), min(count, len(CUTS) * operations))
    return [*chosen, (operations - 1, "killed", 1.0)]
