"""Every parser of untrusted bytes refuses with our error or is right: a sample of `tools.fuzz`.

The corpus beside this file holds what was a finding once. Each input is read in a process of its
own making, because a finding may hang or take all memory.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tools.fuzz.mutate import mutate

ROOT = Path(__file__).parents[2]
INPUTS = 40  # of each target, the first of those that the tool goes through


def fuzz(bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The tool, with this tree's package and tools first."""
    path = os.environ.get("PYTHONPATH", "")
    return subprocess.run(
        [sys.executable, "-m", "tools.fuzz", "--bundle", str(bundle), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_every_parser_refuses_or_is_right(bundle_folder: Path) -> None:
    done = fuzz(bundle_folder, "--inputs", str(INPUTS))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    assert done.stdout.count(f"{INPUTS} inputs, 0 defects") >= 20


def test_a_run_goes_on_where_it_was(bundle_folder: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    for inputs in ("30", "50"):
        done = fuzz(bundle_folder, "--target", "csv", "--inputs", inputs, "--state", str(state))
        assert done.returncode == 0 and f"{inputs} inputs" in done.stdout
    assert '"inputs": 50' in state.read_text()


def test_coverage_guides_where_atheris_is(bundle_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="atheris is not installed: the extra [dev] has it")
    done = subprocess.run(
        [sys.executable, "-m", "tools.fuzz.guided", "--bundle", str(bundle_folder), "--target",
         "csv", "--inputs", "400", "--corpus", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    assert "number_of_executed_units: 400" in done.stderr
    assert (
        len(list((tmp_path / "csv").iterdir())) > 5
    )  # beside the seeds, what reached new branches


@pytest.mark.parametrize("form", ["bytes", "json", "yaml", "text", "jsonl"])
def test_the_same_seed_gives_the_same_input(form: str) -> None:
    seeds = [b'{"a": [1, "b"], "c": null}', b'{"d": 2.5}']
    made = [
        [mutate(seeds[n % 2], form, random.Random(n), seeds) for n in range(50)] for _ in range(2)
    ]
    assert made[0] == made[1] and len(set(made[0])) > 25
