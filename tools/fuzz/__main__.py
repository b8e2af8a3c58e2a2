"""Fuzz the parsers of untrusted bytes.

    python -m tools.fuzz --bundle BUNDLE                          a minute of each target
    python -m tools.fuzz --bundle BUNDLE --inputs 100000 --state fuzz.json
    python -m tools.fuzz --bundle BUNDLE --target zip --inputs 1000 --save

BUNDLE is the suite's tiny one: `python -m tests.make_bundle BUNDLE`. An input must be refused with
one of our errors (exit code 2, 3, 4, 5 or 7; of a box, that host's failure) or give a right result:
where a checksum guards the bytes, the identical one. Anything else, a hang beyond `--seconds` and
more than 2 GiB of memory among it, is a finding; `--save` puts it, made smaller, into the corpus
that the tests replay. With `--state` a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import sys
import time
from pathlib import Path

from tools.fuzz.catalogue import all_targets
from tools.fuzz.runner import Finding, Runner, workplace

CORPUS = Path(__file__).resolve().parents[2] / "tests" / "fuzz" / "corpus"
_STEP = 2000  # inputs between two lines of the state
_MINUTE = 60.0


def main() -> int:
    """Run the targets asked for; 1 where there is a finding."""
    options = _options()
    logging.disable(logging.CRITICAL)
    targets = all_targets()
    state: dict[str, dict[str, float]] = {}
    if options.state and options.state.is_file():
        state = json.loads(options.state.read_text())
    findings = 0
    with workplace(options.bundle) as place:
        for name in options.target or targets:
            runner = Runner(targets[name], place, CORPUS, options.seconds)
            findings += _run(runner, options, state)
    return 1 if findings else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tools.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--inputs", type=int, help="of each target; else a minute of each")
    parser.add_argument("--target", action="append", choices=list(all_targets()))
    parser.add_argument("--seconds", type=float, default=10.0, help="that one input may take")
    parser.add_argument("--state", type=Path, help="file that remembers how far each target is")
    parser.add_argument("--save", action="store_true", help="findings into the corpus")
    return parser.parse_args()


def _run(runner: Runner, options: argparse.Namespace, state: dict[str, dict[str, float]]) -> int:
    """One target, from where the state says it is."""
    name = runner.target.name
    known = state.setdefault(name, {"inputs": 0, "findings": 0, "seconds": 0.0})
    found: dict[str, Finding] = {}

    def take(finding: Finding) -> None:
        known["findings"] += 1
        if finding.signature not in found:
            found[finding.signature] = finding
            print(f"{name}: {finding.signature}, input {finding.number}", flush=True)

    began = time.monotonic()
    runner.run(-len(runner.known), 0, take)
    first, spent = int(known["inputs"]), known["seconds"]
    while (first < options.inputs) if options.inputs else (time.monotonic() - began < _MINUTE):
        last = first + _STEP if not options.inputs else min(options.inputs, first + _STEP)
        runner.run(first, last, take)
        first = last
        known["inputs"], known["seconds"] = first, round(spent + time.monotonic() - began, 1)
        if options.state:
            options.state.write_text(json.dumps(state, indent=1))
    print(f"{name}: {first} inputs, {len(found)} defects, {known['seconds']:.0f} s", flush=True)
    if options.save:
        for finding in found.values():
            _save(runner, finding)
    return len(found)


def _save(runner: Runner, finding: Finding) -> None:
    content = runner.minimised(runner.content(finding.number), finding.signature)
    folder = CORPUS / runner.target.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(content).hexdigest()[:12]).write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
