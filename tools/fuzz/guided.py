"""Fuzz one parser with coverage to guide it: atheris (libFuzzer) in the place of blind changes.

    pip install atheris
    python -m tools.fuzz.guided --bundle BUNDLE --target manifest --inputs 100000 --corpus CORPUS

The package is instrumented as it is imported, so a changed input that reaches a new branch is kept
and changed further; `--corpus` keeps them for the next time. Changes are `mutate`'s, of bytes and
of structure; the oracle is `tools.fuzz`'s. Findings are printed, and with `--save` kept for the
tests. An input that takes longer than `--seconds` or more than 2 GiB ends the run: libFuzzer says
so, and leaves the input beside the corpus.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import random
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["edgeladder"]):
    from tools.fuzz.catalogue import all_targets
from tools.fuzz.mutate import mutate
from tools.fuzz.runner import Runner, judge, workplace

_FOUND = Path(__file__).resolve().parents[2] / "tests" / "fuzz" / "corpus"
_MEMORY_MB = 2048
_LONGEST = 1 << 20  # bytes of an input


class Guided:
    """What libFuzzer calls: the oracle, and how an input is changed."""

    def __init__(self, runner: Runner, found: Path, save: bool):
        self.runner, self.found, self.save = runner, found, save
        self.signatures: set[str] = set()

    def judge(self, content: bytes) -> None:
        """One input; a finding is said once for each signature."""
        wrong = judge(self.runner.target, content, self.runner.right, self.runner.place)
        if wrong is None or wrong in self.signatures:
            return
        self.signatures.add(wrong)
        print(f"{self.runner.target.name}: {wrong}", flush=True)
        with self.found.open("a", encoding="utf-8") as stream:
            stream.write(f"{wrong}\n")
        if self.save:
            folder = _FOUND / self.runner.target.name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)

    def change(self, content: bytes, most: int, seed: int) -> bytes:
        """A changed input of at most so many bytes, fixed by a seed."""
        chance = random.Random(seed)
        return mutate(content, self.runner.target.form, chance, self.runner.seeds)[:most]


def _fuzz(guided: Guided, words: list[str]) -> int:
    """libFuzzer in a process of its own, which it ends without asking; its exit code."""
    child = os.fork()
    if not child:
        atheris.Setup([sys.argv[0], *words], guided.judge, custom_mutator=guided.change)
        atheris.Fuzz()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> int:
    """Run one target; 1 where there is a finding, libFuzzer's own exit code where it stopped."""
    parser = argparse.ArgumentParser(prog="tools.fuzz.guided", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--target", required=True, choices=list(all_targets()))
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=10, help="that one input may take")
    parser.add_argument("--corpus", type=Path, required=True, help="inputs that reached something")
    parser.add_argument("--save", action="store_true", help="findings into the tests' corpus")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    grown = options.corpus / options.target
    grown.mkdir(parents=True, exist_ok=True)
    with workplace(options.bundle) as place:
        runner = Runner(all_targets()[options.target], place, _FOUND, float(options.seconds))
        for content in runner.seeds:
            (grown / hashlib.sha256(content).hexdigest()).write_bytes(content)
        found = place / "found.txt"
        found.touch()
        words = [
            f"-runs={options.inputs}", f"-timeout={options.seconds}", f"-max_len={_LONGEST}",
            f"-rss_limit_mb={_MEMORY_MB}", f"-artifact_prefix={options.corpus}/", "-verbosity=0",
            "-print_final_stats=1", str(grown),
        ]  # fmt: skip
        code = _fuzz(Guided(runner, found, options.save), words)
        return code or int(found.stat().st_size > 0)


if __name__ == "__main__":
    sys.exit(main())
