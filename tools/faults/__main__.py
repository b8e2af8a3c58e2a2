"""Prove that a power cut, a kill or a full disk loses nothing.

    python -m tools.faults --bundle BUNDLE                 every operation of every command
    python -m tools.faults --bundle BUNDLE --sample 20     some of them, fixed by --seed
    python -m tools.faults --bundle BUNDLE --kills 200     SIGKILLs of whole commands

BUNDLE is the suite's tiny one (`python -m tests.make_bundle BUNDLE`); with `--condensation BUNDLE`
(exported with that profile) condensing is cut short too. What every cut must leave: all as before,
or complete; and the same command again ends with the same bits.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.conftest import make_pictures
from tools.faults import commands
from tools.faults.commands import Command
from tools.faults.kills import Killer
from tools.faults.prove import Prover, every, sample


def main() -> int:
    """Run what was asked for; 1 where anything was lost."""
    parser = argparse.ArgumentParser(prog="tools.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--condensation", type=Path, help="a bundle of that profile")
    parser.add_argument("--command", action="append", help="only this one")
    parser.add_argument("--sample", type=int, help="cuts of each command; else all")
    parser.add_argument("--kills", type=int, help="kill whole commands so many times instead")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        work = Path(folder)
        data = make_pictures(work / "pictures", count=3)
        if options.kills:
            more = make_pictures(work / "more", count=4, size=44)
            return _kill(Killer(work, options.bundle.resolve(), data, more), options)
        return _cut(work, data, options)


def _cut(work: Path, data: Path, options: argparse.Namespace) -> int:
    bundle, lost = options.bundle.resolve(), 0

    def deploy() -> Command:
        (work / "trained").mkdir()
        commands.train(bundle, data).act(work / "trained")
        return commands.deploy_model(bundle, data, work / "trained" / "run")

    made: dict[str, Callable[[], Command]] = {
        "pull": commands.pull_job,
        "export": lambda: commands.export(bundle),
        "archive": lambda: commands.archive(bundle),
        "precompute": lambda: commands.precompute(bundle, data),
        "train": lambda: commands.train(bundle, data),
        "deploy": deploy,
    }
    if options.condensation:
        made["condense"] = lambda: commands.condense(options.condensation.resolve(), data)
    for name in options.command or made:
        began = time.monotonic()
        prover = Prover(made[name](), work)
        cuts = every(prover.operations)
        if options.sample:
            cuts = sample(prover.operations, options.sample, options.seed)
        proof = prover.prove(cuts, functools.partial(_say, name))
        lost += len(proof.failures)
        seconds = time.monotonic() - began
        counts = f"{proof.operations} operations, {proof.cuts} cuts, {proof.states} states"
        counts += f", {len(proof.failures)} failures"
        print(f"{name}: {counts}, {seconds:.0f} s", flush=True)
        for failure in proof.failures[:20]:
            print(f"  {failure}", flush=True)
    return 1 if lost else 0


def _say(name: str, words: str) -> None:
    print(f"{name}: {words}", flush=True)


def _kill(killer: Killer, options: argparse.Namespace) -> int:
    chance = random.Random(options.seed)
    names = options.command or list(killer.known)
    kills: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for number in range(options.kills):
        name = names[number % len(names)]
        kills[name] += 1
        wrong = killer.kill(name, chance)
        if wrong is not None:
            lost[name] += 1
            print(f"{name}, kill {number}: {wrong}", flush=True)
        if number % 20 == 19 or number == options.kills - 1:
            print(", ".join(f"{n}: {kills[n]} kills, {lost[n]} lost" for n in names), flush=True)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
