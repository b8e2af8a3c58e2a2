"""`edgeladder train` under a small budget: a bare supervisor takes the command line's place."""

import json
import os
import subprocess
import sys
from pathlib import Path

from edgeladder.jobs.run_directory import read_metrics

RUN = "from edgeladder.cli.app import run; run()"
ROOT = Path(__file__).resolve().parents[2]


def command(folder, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )


def test_a_small_budget_is_supervised_by_a_bare_process(tmp_path, bundle_folder, picture_folder):
    given = ["--bundle", bundle_folder, "--data", picture_folder, "--budget", "300MB"]
    done = command(tmp_path, "train", *given, "--set", "train.steps=2", "--run", "r", "--json")
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["steps"] == 2 and Path(tmp_path / values["report"]).is_file()
    phases = [r for r in read_metrics(tmp_path / "r" / "metrics.jsonl") if r["kind"] == "phase"]
    # typer and rich make the command line itself three times as large
    assert phases and all(phase["supervisor_bytes"] < 15_000_000 for phase in phases)


def test_a_refusal_of_the_bare_process_reads_as_the_command_lines_own(
    tmp_path, bundle_folder, picture_folder
):
    given = ["--bundle", bundle_folder, "--data", picture_folder]
    done = command(tmp_path, "train", *given, "--budget", "20MB", "--json")
    assert done.returncode == 3, done.stderr
    least = json.loads(done.stdout)["error"]["minimum_budget_bytes"]
    told = command(tmp_path, "train", *given, "--budget", "20MB")
    assert told.returncode == 3 and "\nhelp:  --budget" in told.stderr and not told.stdout
    planned = command(tmp_path, "plan", *given, "--budget", f"{least}", "--json")
    # planned for the bare process, which is what will run it
    assert abs(json.loads(planned.stdout)["minimum_budget_bytes"] - least) < 8_000_000
